"""TensorRT's plugins for our ops, registered where an engine is built, and where one is loaded that needs them.

The declarations are those of `plugins/<op>/tensorrt_plugin.py`: they lie here under the op's name, so that the runtime
needs nothing of `plugins/`.
"""
