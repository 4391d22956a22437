"""The error of everything that builds models."""

from regionrt.runtime.errors import RegionRTError


class ModelError(RegionRTError, ValueError):
    """A model, backbone, option or input size that does not exist or does not fit together."""
