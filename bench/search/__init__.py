"""Searching, which needs measuring: layers given back to fp32, ranks of layers, and all settings together."""
