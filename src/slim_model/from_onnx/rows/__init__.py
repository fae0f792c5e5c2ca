"""What operators of ONNX are in PyTorch, by kind. ``table.py`` says which function belongs to which operator."""
