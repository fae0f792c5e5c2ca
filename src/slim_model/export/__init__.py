"""Small models -> files: ONNX, .pt2, .safetensors, .pt."""
