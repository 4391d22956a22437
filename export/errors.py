"""The error of the export road."""

from regionrt.runtime.errors import RegionRTError


class ExportError(RegionRTError):
    """A model that cannot be exported as asked, or an artefact that is not what was asked for."""
