"""Readers of datasets, a file for each format."""
