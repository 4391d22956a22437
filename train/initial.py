"""Where training starts: weights that `--init` or `--from` brings, and layers that `--freeze` holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .checkpoint import Checkpoint, CheckpointError, read_checkpoint, read_tensors
from .models.backbones import initial_weights
from .models.errors import ModelError


def init_backbone(module: nn.Module, backbone: str | None, path: str | Path) -> list[str]:
    """Load a torchvision classifier's ImageNet weights (its own key names) into the backbone of a model of ours.

    Returns notes: what of the file was left out. CheckpointError lists what the backbone misses, keys that do not
    belong to it, and shapes that differ; nothing is loaded then.
    """
    path = Path(path)
    content = read_tensors(path)
    if "format" in content:
        raise CheckpointError(f"{path} is a RegionRT checkpoint: --init takes a classifier's state_dict; see --from")
    if wrong := [k for k, v in content.items() if not isinstance(k, str) or not isinstance(v, Tensor)]:
        raise CheckpointError(f"{path}: expected a state_dict of tensors, found {len(wrong)} other entries")
    if backbone is None or not hasattr(module, "backbone"):
        raise ModelError("--init: this model has no backbone of torchvision's whose weights could be loaded")
    sorted_out = initial_weights(backbone, module, content)
    expected = module.state_dict()
    shapes = [
        f"{key} {list(value.shape)} instead of {list(expected[key].shape)}"
        for key, value in sorted_out.state_dict.items()
        if value.shape != expected[key].shape
    ]
    for found, what in (
        (sorted_out.missing, "missing"),
        (sorted_out.unexpected, "unexpected"),
        (shapes, "of another shape"),
    ):
        if found:
            raise CheckpointError(f"{path} does not fit {backbone}: {len(found)} keys are {what}: {_some(found)}")
    module.load_state_dict(sorted_out.state_dict, strict=False)
    if not sorted_out.left_out:
        return []
    return [f"{path.name}: left out {len(sorted_out.left_out)} keys of no use here: {_some(sorted_out.left_out)}"]


def checkpoint_to_start_from(path: str | Path, model: str, config: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint of `model` with its options, changed by those in `config`. CheckpointError for another model."""
    found = read_checkpoint(path)
    if found.model != model:
        raise CheckpointError(f"{path} is a {found.model}: train that, not {model}")
    return replace(found, config={**found.config, **config})


def frozen_modules(module: nn.Module, prefixes: Sequence[str]) -> list[nn.Module]:
    """Stop the gradients of all parameters under these names (`backbone`, `backbone.body.0`, `rpn` …).

    Returns the modules under them, which training must keep in eval mode: their BatchNorm statistics stay too.
    ModelError for a name that matches nothing, or when nothing is left to train.
    """
    held = []
    for prefix in prefixes:
        matched = False
        for name, parameter in module.named_parameters():
            if _under(name, prefix):
                parameter.requires_grad_(False)
                matched = True
        under = [m for name, m in module.named_modules() if _under(name, prefix)]
        if not matched and not under:
            children = ", ".join(name for name, _ in module.named_children())
            raise ModelError(f"freeze {prefix!r} names no layer: give names such as {children}, or longer ones")
        held += under
    if not any(p.requires_grad for p in module.parameters()):
        raise ModelError(f"freeze {', '.join(prefixes)} leaves nothing to train")
    return held


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _some(names: list[str], shown: int = 6) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
