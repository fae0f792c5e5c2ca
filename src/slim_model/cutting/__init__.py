"""A plan -> smaller graphs and modules."""
