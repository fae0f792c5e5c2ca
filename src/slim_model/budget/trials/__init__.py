"""Whole plans, or whole branches gone, tried on samples that are held out."""
