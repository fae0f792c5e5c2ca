"""Channels -> scores."""
