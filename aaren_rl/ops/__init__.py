"""Operators over time: prefix attention and the linear recurrence."""
