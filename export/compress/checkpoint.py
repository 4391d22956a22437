"""A checkpoint compressed: the same model with layers split, again a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isnan

from torch import nn

from regionrt.train.checkpoint import Checkpoint, module_from_checkpoint
from regionrt.train.models.svd_pairs import SPATIAL, SVD, splittable

from ..errors import ExportError
from .calibration import Photo, calibration_and_held_out
from .data_aware import RIDGE, DataAwareSVD, moments_of
from .factors import Halves
from .layers import largest_rank
from .output_error import output_errors
from .ranks import Energy, Rank, Ratio
from .spatial import SpatialSVD
from .splitting import (
    Method,
    SplitLayer,
    layer_named,
    layers_named,
    layers_to_split,
    replace_layers_,
    split_layers,
)
from .truncated_svd import TruncatedSVD

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class CompressOptions:
    """Which layers are split, and how far: `ranks` by layer, or one of `energy` and `ratio` for all of `layers`.

    layers: names (`fc6`) and patterns (`backbone.*`); none: the fully connected layers, with `spatial` k×k
    convolutions too. spatial: convolutions of k×k are split into k×1 and 1×k, without it they are errors.
    multiple: to which ranks by energy and ratio are rounded up. ridge: of the data-aware form.
    """

    ranks: Mapping[str, int] = field(default_factory=dict)
    energy: float | None = None
    ratio: float | None = None
    layers: tuple[str, ...] = ()
    spatial: bool = False
    multiple: int = 16
    ridge: float = RIDGE

    def __post_init__(self) -> None:
        if sum([bool(self.ranks), self.energy is not None, self.ratio is not None]) != 1:
            raise ExportError("say how far to compress by one of --rank, --energy and --ratio")
        if self.ranks and self.layers:
            raise ExportError("--rank names its layers itself: leave out --layers")
        self.rule()

    def rule(self) -> Rank | None:
        if self.energy is not None:
            return Energy(self.energy)
        return Ratio(self.ratio) if self.ratio is not None else None


def compress_checkpoint(
    checkpoint: Checkpoint,
    options: CompressOptions,
    photos: Sequence[Photo] | None = None,
    progress: Progress = lambda text, share: None,
) -> tuple[Checkpoint, list[SplitLayer]]:
    """Split layers by truncated SVD; with photos by its data-aware form (k×k convolutions: spatially all the same).

    How each layer is split goes into the new checkpoint's `config["svd"]`, so that it trains, evaluates and exports
    like any other. Four of five photos are calibrated on; output errors are measured on the fifth.
    Raises CheckpointError (weights that do not fit), ExportError (layers, ranks, photos).
    """
    module = module_from_checkpoint(checkpoint)
    ranks = _ranks(module, options)
    layers = {name: module.get_submodule(name) for name in ranks}
    methods = {name: _plain(layer, ranks[name], options) for name, layer in layers.items()}
    if photos is None:
        done = split_layers(layers, methods)
    else:
        calibration, held_out = calibration_and_held_out(photos)
        # What no rank of that multiple makes smaller is left alone without being looked at.
        aware = {
            name: layer
            for name, layer in layers.items()
            if splittable(layer, SVD) and (options.ranks or largest_rank(layer, SVD) >= options.multiple)
        }
        moments = moments_of(module, aware, calibration, _part(progress, "calibrate", 0.0, 0.8)) if aware else {}
        for name in aware:
            methods[name] = DataAwareSVD(ranks[name], moments, options.multiple, options.ridge)
        done = split_layers(layers, methods)
        done = _measured(module, layers, done, held_out, _part(progress, "measure", 0.8, 1.0))
    report = replace_layers_(module, done)
    svd = {name: halves.split.to_json() for name, (_, halves) in done.items() if halves is not None}
    config = {**checkpoint.config, "svd": {**checkpoint.config.get("svd", {}), **svd}}
    return Checkpoint(checkpoint.model, config, checkpoint.labels, module.state_dict()), report


def _ranks(module: nn.Module, options: CompressOptions) -> dict[str, Rank]:
    """Full layer name → rank or rule, in the module's order where a rule is for all of them."""
    rule = options.rule()
    if rule is not None:
        return dict.fromkeys(chosen_layers(module, options.layers, options.spatial), rule)
    ranks: dict[str, Rank] = {}
    for wanted, rank in options.ranks.items():
        name = layer_named(module, wanted, _fits(options.spatial))
        if name in ranks:
            raise ExportError(f"--rank names the layer {name} twice: give one rank")
        ranks[name] = rank
    return ranks


def chosen_layers(module: nn.Module, wanted: Sequence[str] = (), spatial: bool = False) -> list[str]:
    """Full names of the layers called `wanted`, patterns too; of none: the fully connected ones, with `spatial` also
    k×k convolutions. ExportError names the nearest where one matches nothing, and where none is left to split."""
    fits = _fits(spatial)
    if wanted:
        return layers_named(module, wanted, fits)
    every = [
        name
        for name, layer in layers_to_split(module, fits).items()
        if isinstance(layer, nn.Linear) or splittable(layer, SPATIAL)
    ]
    if not every:
        raise ExportError("the model has no fully connected layer left to split: name others with --layers")
    return every


def _fits(spatial: bool) -> Callable[[nn.Module], bool]:
    return lambda layer: splittable(layer, SVD) or (spatial and splittable(layer, SPATIAL))


def _plain(layer: nn.Module, rank: Rank, options: CompressOptions) -> Method:
    """The method that needs no data."""
    return (SpatialSVD if splittable(layer, SPATIAL) else TruncatedSVD)(rank, options.multiple)


def _measured(
    module: nn.Module,
    layers: Mapping[str, nn.Module],
    done: Mapping[str, tuple[SplitLayer, Halves | None]],
    held_out: Sequence[Photo],
    progress: Progress,
) -> dict[str, tuple[SplitLayer, Halves | None]]:
    """The reports with output errors, beside those of plain SVD at the same ranks."""
    pairs: dict[str, list[nn.Module]] = {}
    for name, (report, halves) in done.items():
        if halves is not None:
            pairs[name] = [halves.pair]
            if report.method == DataAwareSVD.name:
                pairs[name].append(TruncatedSVD(halves.split.rank)(layers[name]))
    if not pairs:
        return dict(done)
    errors = output_errors(module, {name: layers[name] for name in pairs}, pairs, held_out, progress)
    measured = dict(done)
    for name, found in errors.items():
        error, of_svd = ([None if isnan(e) else e for e in found] + [None])[:2]
        measured[name] = (replace(done[name][0], output_error=error, svd_error=of_svd), done[name][1])
    return measured


def _part(progress: Progress, what: str, low: float, high: float) -> Progress:
    return lambda text, share: progress(f"{what}: {text}", low + (high - low) * share)
