"""The stages in their order. Read ``compile.py`` first."""
