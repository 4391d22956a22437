"""Data-aware SVD: of all pairs of a rank, the one whose *outputs* on calibration data are nearest to the layer's.

Whitening by the inputs' covariance C (W' = svd_k(W·C^½)·C^-½) gives that pair. Its left factor holds the first k
eigenvectors U of W·C·Wᵀ, which is the covariance of the layer's outputs, and W' = U·Uᵀ·W: so neither C ([25088, 25088]
for fc6 of VGG-16) nor its root is ever needed, and the optimum is a principal component analysis of the outputs
(Zhang et al., arXiv:1505.06798, section 2.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from regionrt.train.models.svd_pairs import SVD, SvdPair, splittable

from ..errors import ExportError
from .calibration import Photo, as_rows, watch
from .factors import Factors, Halves, spectrum
from .layers import matrix_of
from .ranks import Rank

RIDGE = 1e-3


class OutputMoments:
    """Mean and scatter of a layer's outputs and the variance of its inputs, in float64, from batches of rows.

    Batches are merged by their means (Chan et al., 1979): nothing large is subtracted from something large.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.rows = 0
        self.mean = torch.zeros(outputs, dtype=torch.float64)
        self._scatter = torch.zeros(outputs, outputs, dtype=torch.float64)
        self._input_rows = 0
        self._input_mean = torch.zeros(inputs, dtype=torch.float64)
        self._input_scatter = torch.zeros(inputs, dtype=torch.float64)  # of each input by itself

    def add(self, x: Tensor, y: Tensor) -> None:
        """Inputs [rows, in] and outputs [rows, out]; a strided convolution has more rows of inputs."""
        x, y = x.cpu().double(), y.cpu().double()
        mean = y.mean(0)
        centred, step = y - mean, mean - self.mean
        weight = self.rows * len(y) / (self.rows + len(y))
        self._scatter += centred.T @ centred + weight * torch.outer(step, step)
        self.rows += len(y)
        self.mean += step * (len(y) / self.rows)
        mean = x.mean(0)
        step = mean - self._input_mean
        weight = self._input_rows * len(x) / (self._input_rows + len(x))
        self._input_scatter += (x - mean).square().sum(0) + weight * step.square()
        self._input_rows += len(x)
        self._input_mean += step * (len(x) / self._input_rows)

    @property
    def covariance(self) -> Tensor:
        """Of the outputs, [out, out]."""
        return self._scatter / self.rows

    @property
    def input_variance(self) -> float:
        """Mean over the inputs: tr(C) / in."""
        return float(self._input_scatter.mean() / max(self._input_rows, 1))


@dataclass(frozen=True)
class DataAwareSVD:
    """As `TruncatedSVD`, but nearest in the outputs that the layer gives on the data whose moments are given.

    moments: by layer, from `moments_of`. The bias takes over the mean of what the pair leaves out; a layer without a
    bias gets one.

    ridge: C is shrunk to C + ridge · tr(C)/in · I, so that directions that the calibration photos do not show keep the
    order that plain SVD gives them. A fixed ridge, because Ledoit and Wolf's estimate takes samples for independent:
    RoIs of one photo overlap, there are thousands of them, and it would find nothing to shrink. Whatever the ridge, the
    error on the calibration data is never larger than plain SVD's: the pair has the smallest sum of that error and a
    multiple of ‖W − W'‖², and of the latter alone plain SVD's is the smallest there is.
    """

    rank: Rank
    moments: Mapping[nn.Module, OutputMoments] = field(repr=False)
    multiple: int = 16
    ridge: float = RIDGE

    name = "data-aware"
    kind = SVD

    def __post_init__(self) -> None:
        if not self.ridge >= 0:
            raise ExportError(f"ridge {self.ridge}: give 0 or more")

    def fits(self, layer: nn.Module) -> bool:
        return splittable(layer, self.kind)

    def __call__(self, layer: nn.Module) -> SvdPair:
        return self.split(layer).pair

    def split(self, layer: nn.Module) -> Halves:
        """ExportError for a layer that has seen no data, or data that does not vary, or fewer rows than the rank."""
        factors = factors_of_moments(layer, self.moments.get(layer), self.ridge)
        return factors.halves(rank_within(factors, self.rank, self.multiple))


def factors_of_moments(layer: nn.Module, found: OutputMoments | None, ridge: float = RIDGE) -> Factors:
    """Directions with which pairs are nearest to the layer's outputs. ExportError for no data, or data of one value."""
    if found is None or not found.rows:
        raise ExportError("it computed nothing on the calibration images: give images with objects")
    if not found.input_variance or not found.covariance.trace():
        raise ExportError("it computes the same on all calibration images: give images that differ")
    matrix = matrix_of(layer, SVD)
    shrinkage = ridge * found.input_variance
    energies, vectors = spectrum(found.covariance + shrinkage * (matrix @ matrix.T).to(found.covariance))
    return Factors(layer, SVD, matrix, energies, vectors, found.mean, found.rows)


def rank_within(factors: Factors, rule: Rank, multiple: int) -> int:
    """The rank, if there are samples enough for it; ExportError otherwise."""
    rank = factors.rank(rule, multiple)
    if factors.rows is not None and factors.rows <= rank:
        raise ExportError(f"{factors.rows} samples of its outputs are too few for rank {rank}: give more images")
    return rank


def moments_of(
    module: nn.Module,
    layers: Mapping[str, nn.Module],
    photos: Sequence[Photo],
    progress: Callable[[str, float], None] = lambda text, share: None,
) -> dict[nn.Module, OutputMoments]:
    """The moments of each layer's outputs while the detector runs on the photos, streamed: no outputs are kept.

    Errors are those of `watch`.
    """
    moments = {layer: OutputMoments(_inputs(layer), layer.weight.shape[0]) for layer in layers.values()}

    def seen(_name: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        moments[layer].add(as_rows(layer, x), as_rows(layer, y))

    watch(module, layers, photos, seen, progress)
    return moments


def _inputs(layer: nn.Module) -> int:
    return int(layer.weight.shape[1])
