"""Offline reinforcement learning with decision agents that train in parallel and act from a state of constant size."""

__version__ = "0.1.0"
