"""Nets that packages ship with trained weights: how each is built and fed, and what counts as the same answer."""
