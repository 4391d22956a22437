"""The error of training data: a folder, annotation or specification that cannot be used."""

from regionrt.runtime.errors import RegionRTError


class DataError(RegionRTError):
    """Data that cannot be read or trusted: unknown layout, broken annotation, missing image, unknown class."""
