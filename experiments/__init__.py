"""From data to results: configurations, runs, comparisons, measurements."""
