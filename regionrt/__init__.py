"""RegionRT: region-based detectors from a PyTorch checkpoint to a verified artefact that runs without PyTorch."""

__version__ = "0.1.0"
