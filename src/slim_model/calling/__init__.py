"""How a model is called, and what it returns: nests of tensors by name, and the same flat."""
