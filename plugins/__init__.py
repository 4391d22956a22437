"""Our operations: one folder each, which says what the op computes (reference.py) and holds the forms it takes.

Nothing is imported here, so that references and kernels can be used where onnx or torch are not installed; `ops.py`
brings all ops together.
"""
