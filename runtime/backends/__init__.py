"""What executes an artefact: the face that every backend shows to the Predictor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np


class Runner(Protocol):
    """Runs a net on canvases. `run` may be called from several threads at once.

    Outputs, by name (N images, at most D detections each, sorted by score, best first):
    `num_detections` int32 [N], `boxes` float32 [N, D, 4] (xyxy in canvas pixels), `scores` float32 [N, D], `labels`
    int32 [N, D], `overflow` int32 [N] (candidates dropped by the cap), and from Mask R-CNN `masks` float32 [N, D, M, M]
    (probabilities of the detected class). Rows beyond the count hold zero boxes, score −1, label −1.
    For segmentation `labels` uint8 [N, H, W] of the canvas instead, and where exported so `probabilities` float32
    [N, K, H, W].
    """

    name: str
    """The backend's name: "onnxruntime", "torch" …"""

    def run(self, images: np.ndarray, image_sizes: np.ndarray, **proposals: np.ndarray) -> dict[str, np.ndarray]:
        """images uint8 [N, H, W, 3], image_sizes int32 [N, 2] (height, width of the valid part) -> outputs by name.

        Nets that take proposals also take `proposals` float32 [N, P, 4] and `proposal_counts` int32 [N].

        Raises BackendError if the engine fails.
        """
        ...

    def close(self) -> None:
        """Frees what the runner holds; `run` afterwards raises BackendError. May be called twice."""
        ...
