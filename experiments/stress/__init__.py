"""Attacks on this package: kills and full disks, damaged files, extreme observations; everything counted."""
