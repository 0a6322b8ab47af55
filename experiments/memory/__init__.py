"""What `scripts/memory.py` measures, one file per subject."""
