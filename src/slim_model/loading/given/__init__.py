"""Inputs that the user gives: typed, in a file, or in Python."""
