"""The errors that RegionRT raises on purpose: each says what was expected, what was found and what to do."""


class RegionRTError(Exception):
    """Base of every error whose message is meant for the user; the command line prints it as one line."""


class OptionError(RegionRTError, ValueError):
    """An option that makes no sense: a number out of its range, a name that there is none of."""


class BundleError(RegionRTError):
    """A bundle that cannot be read or trusted: missing, changed, truncated, of a newer schema, leaving its folder."""


class ImageError(RegionRTError):
    """An image that cannot be decoded, or not within the limits."""


class ProposalError(ImageError):
    """Proposals that do not fit their image: another shape, NaN, or none where the net takes some."""


class BackendError(RegionRTError):
    """An engine library that is missing, refuses the artefact, or fails while it runs it."""


class OutputError(RegionRTError):
    """A result that cannot be written: a full disk, a folder that is not ours to replace."""
