"""Training of a decision model."""
