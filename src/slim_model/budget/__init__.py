"""Scores and a goal -> which channels to keep."""
