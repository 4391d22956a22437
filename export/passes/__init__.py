"""Graph passes on the exported ONNX file, one per file."""
