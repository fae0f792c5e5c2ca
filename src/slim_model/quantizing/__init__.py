"""An fp32 ONNX file -> the int8 file that is fastest on this machine among those that data finds right."""
