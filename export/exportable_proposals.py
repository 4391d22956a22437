"""Nets on proposals as tensor programs: they have the inputs and outputs of a detector, and proposals beside."""

import torch
from torch import Tensor, nn

from regionrt.runtime.inputs import INPUTS, PROPOSAL_INPUTS
from regionrt.train.models.dense import normalised
from regionrt.train.models.proposal_net import ProposalNet

from .exportable import OUTPUTS, detected


class ExportableProposalNet(nn.Module):
    """images, image_sizes, proposals [N, P, 4], proposal_counts [N] -> a detector's outputs."""

    inputs = (*INPUTS, *PROPOSAL_INPUTS)
    outputs = OUTPUTS[:-1]
    pooled_levels = ((0,),)

    def __init__(self, module: ProposalNet, *, candidates: int):
        super().__init__()
        self.module = module
        self.candidates = candidates

    def examples(self, images: Tensor) -> tuple[Tensor, ...]:
        """Values of the inputs beside `images` and `image_sizes`, for tracing."""
        number = images.shape[0]
        return torch.zeros(number, self.module.slots, 4), torch.full((number,), self.module.slots, dtype=torch.int32)

    def forward(
        self, images: Tensor, image_sizes: Tensor, proposals: Tensor, proposal_counts: Tensor
    ) -> tuple[Tensor, ...]:
        """images uint8 [N, H, W, 3] (the canvas), image_sizes int32 [N, 2] (its valid part)."""
        module, heads = self.module, self.module.heads
        feature = module.features(normalised(module, images, image_sizes))
        pooled = module.pool(feature, proposals, proposal_counts)  # [N, P, …]
        logits, deltas = module.classify(pooled.flatten(0, 1))
        return detected(heads, logits, deltas, proposals, proposal_counts, image_sizes, self.candidates)
