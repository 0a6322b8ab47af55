"""Searches for settings of an agent."""
