"""What `scripts/compare.py` puts together, one file per subject."""
