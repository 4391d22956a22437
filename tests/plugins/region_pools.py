"""The poolings of regions of one map, each with what is asked of it, so that one test can hold for both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from one_op import run

from regionrt.plugins.pyramid_pool import reference as pyramid
from regionrt.plugins.pyramid_pool import torch_op as torch_pyramid
from regionrt.plugins.roi_pool import reference as roi
from regionrt.plugins.roi_pool import torch_op as torch_roi


@dataclass(frozen=True)
class Case:
    """A map of `size` cells, of so many pixels each."""

    size: tuple[int, int] = (13, 17)
    stride: float = 16
    counts: tuple[int, ...] = (6, 0, 3)  # full, none, some
    rows: int = 6

    op = ""

    def arrays(self, dtype=np.float32, seed: int = 0):
        rng = np.random.default_rng(seed)
        feature = rng.normal(size=(len(self.counts), 3, *self.size)).astype(dtype)
        extent = np.array([self.size[1], self.size[0]]) * self.stride
        corners = rng.uniform(-0.4, 1.4, (len(self.counts), self.rows, 2, 2)) * extent
        rois = np.concatenate([corners.min(2), corners.max(2)], -1).astype(np.float32)
        return feature, rois, np.array(self.counts, np.int32)

    def run(self, way, feature, rois, counts, shapes=None):
        inputs = {"feature": feature, "rois": rois, "counts": counts}
        return run(self.op, way, inputs, self.attributes(), shapes)[0]


@dataclass(frozen=True)
class RoiPool(Case):
    out: tuple[int, int] = (3, 2)

    op = "RegionRoiPool"

    def attributes(self) -> dict:
        return {"spatial_scale": 1 / self.stride, "output_height": self.out[0], "output_width": self.out[1]}

    def reference(self, feature, rois, counts):
        return roi.roi_pool(feature, rois, counts, spatial_scale=1 / self.stride, output_size=self.out)

    def torch(self, *tensors: torch.Tensor) -> torch.Tensor:
        return torch_roi.roi_pool(*tensors, *self.attributes().values())


@dataclass(frozen=True)
class PyramidPool(Case):
    bins: tuple[int, ...] = (6, 3, 2, 1)

    op = "RegionPyramidPool"

    def attributes(self) -> dict:
        return {"spatial_scale": 1 / self.stride, "bins": list(self.bins)}

    def reference(self, feature, rois, counts):
        return pyramid.pyramid_pool(feature, rois, counts, spatial_scale=1 / self.stride, bins=self.bins)

    def torch(self, *tensors: torch.Tensor) -> torch.Tensor:
        return torch_pyramid.pyramid_pool(*tensors, 1 / self.stride, self.bins)


POOLS = (RoiPool, PyramidPool)
