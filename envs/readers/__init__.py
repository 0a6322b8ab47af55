"""Readers of datasets, a file for each format; `detect` finds the one of a path."""
