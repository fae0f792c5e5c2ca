"""Inputs like the example, of other sizes and other values."""
