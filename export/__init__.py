"""From a PyTorch detector to a verified bundle. Start at `export_bundle`."""

from .bundle import ExportOptions, export_bundle
from .errors import ExportError
from .verify import verify

__all__ = ["ExportError", "ExportOptions", "export_bundle", "verify"]
