"""Layers written as several in a row, so that their ranks are channels like any other. Read ``factor.py`` first."""
