"""An ONNX file -> a PyTorch module that computes what its nodes say: ``read.py`` reads it, ``table.py`` has a row for
each operator, ``model.py`` runs them."""
