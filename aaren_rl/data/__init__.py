"""Offline data: trajectories, and the segments that are drawn from them."""
