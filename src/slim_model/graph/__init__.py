"""A model -> one flat ATen graph."""
