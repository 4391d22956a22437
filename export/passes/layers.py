"""Which ONNX operators are layers: the ones with weights, where the time goes and where precision is chosen."""

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
