"""What a net is given for photos, outside of the runtime's Predictor: the canvas, and proposals where it takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regionrt.runtime.image import Canvas
from regionrt.runtime.proposals import ProposalInput

from .data.proposals import KeptProposals


def request_for(canvas: Canvas, proposals: ProposalInput | None, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs of an artefact by name, for RGB uint8 [H, W, 3] photos; proposals come from the user's cache."""
    placed, sizes, placements = canvas.place(images)
    request = {"images": placed, "image_sizes": sizes}
    if proposals is None:
        return request
    kept = KeptProposals(proposals.search)
    return request | proposals.place(images, [kept(image)[: proposals.most] for image in images], placements)
