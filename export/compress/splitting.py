"""Layers of a module replaced by pairs: which ones, by which method, and what became of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Protocol

from torch import nn

from regionrt.train.models.svd_pairs import SPATIAL, SvdPair, describe, matrix_size, splittable

from ..errors import ExportError
from .factors import Halves
from .layers import weights_of_pair
from .ranks import NothingGainedError

_NEAREST = 5  # names listed where one matches nothing


class Method(Protocol):
    """How a layer is split: `TruncatedSVD`, `DataAwareSVD`, `SpatialSVD`."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    def fits(self, layer: nn.Module) -> bool: ...

    def split(self, layer: nn.Module) -> Halves: ...


@dataclass(frozen=True)
class SplitLayer:
    """What happened to one layer.

    energy: the share of the squared singular values that the rank keeps (data-aware: of the output's variance).
    output_error: ‖y − y'‖ / ‖y − mean(y)‖ of its outputs on held-out images, its own inputs being exact;
    svd_error: the same of plain SVD at this rank. left_alone: why nothing was done; rank and energy are then None.
    """

    name: str
    method: str
    rank: int | None
    weights_before: int
    weights_after: int
    energy: float | None
    output_error: float | None = None
    svd_error: float | None = None
    left_alone: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compress_(
    module: nn.Module, method: Method, where: Callable[[str, nn.Module], bool] | None = None
) -> list[SplitLayer]:
    """Replace layers of `module` in place by pairs, e.g. `compress_(model, TruncatedSVD(64), where=…)`.

    where: a predicate of a layer's full name and the layer; without it all layers that the method fits. Pairs that are
    there already are left as they are. Either all pairs are made or, with an ExportError, the module stays as it was.
    """
    chosen = {n: x for n, x in layers_to_split(module, method.fits).items() if where is None or where(n, x)}
    if not chosen:
        raise ExportError(f"{method.name}: none of the model's layers is chosen that it can split")
    return replace_layers_(module, split_layers(chosen, dict.fromkeys(chosen, method)))


def layers_to_split(module: nn.Module, fits: Callable[[nn.Module], bool]) -> dict[str, nn.Module]:
    """Layers by full name, in the module's order, without the halves of pairs."""
    halves = {id(half) for pair in module.modules() if isinstance(pair, SvdPair) for half in pair}
    return {n: x for n, x in module.named_modules() if n and id(x) not in halves and fits(x)}


def layer_named(module: nn.Module, wanted: str, fits: Callable[[nn.Module], bool]) -> str:
    """The full name of the one layer that is called `wanted` or whose last parts are (`fc6`).

    ExportError: unknown (the nearest names are listed), ambiguous, split already, or of a type that does not fit.
    """
    layers = layers_to_split(module, fits)
    matches = [name for name in layers if _called(name, wanted)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ExportError(f"layer {wanted} is ambiguous: {', '.join(matches)}; give more of its name")
    raise ExportError(_not_found(module, wanted, layers))


def layers_named(module: nn.Module, wanted: Iterable[str], fits: Callable[[nn.Module], bool]) -> list[str]:
    """Full names for names as `layer_named` takes them, and for patterns (`backbone.*`), which may match several."""
    layers = layers_to_split(module, fits)
    found: dict[str, None] = {}
    for name in wanted:
        if not set(name) & set("*?["):
            found[layer_named(module, name, fits)] = None
            continue
        matches = [layer for layer in layers if fnmatchcase(layer, name)]
        if not matches:
            raise ExportError(_not_found(module, name, layers))
        found |= dict.fromkeys(matches)
    return [layer for layer in layers if layer in found]


def split_layers(
    layers: Mapping[str, nn.Module], methods: Mapping[str, Method]
) -> dict[str, tuple[SplitLayer, Halves | None]]:
    """The report and the pair of each layer; None for one that is left alone. ExportError names the layer."""
    done: dict[str, tuple[SplitLayer, Halves | None]] = {}
    for name, method in methods.items():
        layer, halves, reason = layers[name], None, None
        rows, columns = matrix_size(layer, method.kind)
        try:
            halves = method.split(layer)
        except NothingGainedError as error:
            reason = str(error)
        except ExportError as error:
            raise ExportError(f"layer {name}: {error}") from error
        after = rows * columns if halves is None else weights_of_pair(layer, method.kind, halves.split.rank)
        rank, energy = (None, None) if halves is None else (halves.split.rank, halves.energy)
        report = SplitLayer(name, method.name, rank, rows * columns, after, energy, left_alone=reason)
        done[name] = (report, halves)
    return done


def replace_layers_(module: nn.Module, done: Mapping[str, tuple[SplitLayer, Halves | None]]) -> list[SplitLayer]:
    """Put the pairs of `split_layers` in their places."""
    for name, (_, halves) in done.items():
        if halves is not None:
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, halves.pair.train(module.training))
    return [report for report, _ in done.values()]


def _called(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _not_found(module: nn.Module, wanted: str, layers: Mapping[str, nn.Module]) -> str:
    for name, part in module.named_modules():
        if not _called(name, wanted):
            continue
        if isinstance(part, SvdPair):
            return f"layer {name} is split already: compress the checkpoint that it was made from"
        if isinstance(part, nn.Conv2d):
            if splittable(part, SPATIAL):
                return f"layer {name} ({describe(part)}) is a k×k convolution: split only spatially, with --spatial"
            return f"layer {name} ({describe(part)}) is a convolution of a kind that is not split"
    by_last_part = {name.rpartition(".")[2]: name for name in reversed(list(layers))}
    close = [*get_close_matches(wanted, layers, _NEAREST), *get_close_matches(wanted, by_last_part, _NEAREST)]
    nearest = list(dict.fromkeys(by_last_part.get(name, name) for name in close)) or list(layers)[-_NEAREST:]
    shown = ", ".join(f"{name} ({describe(layers[name])})" for name in nearest[:_NEAREST])
    return f"{wanted!r} names no layer that can be split; " + (f"nearest are {shown}" if shown else "there is none")
