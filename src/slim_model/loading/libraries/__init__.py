"""Packages whose models people bring: one row each in ``table``."""
