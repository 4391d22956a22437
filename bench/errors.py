"""The error that measuring and telling raise on purpose."""

from regionrt.runtime.errors import RegionRTError


class BenchError(RegionRTError):
    """Things that cannot be compared fairly (other labels, other data), or a report that cannot be read."""
