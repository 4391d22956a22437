"""Compression: transforms of modules, one per file."""
