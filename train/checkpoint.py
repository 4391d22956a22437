"""Checkpoints: one `.pt` file with the model's name, options, labels and weights, read without executing anything."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regionrt.runtime.atomic import replace_file
from regionrt.runtime.errors import RegionRTError

from .models import BACKGROUND, MODELS, ModelError, build_model, why_not_labels

FORMAT = "regionrt/1"
_SHOWN = 6  # keys named in one error


class CheckpointError(RegionRTError):
    """A file that is no checkpoint, of another version, or whose weights do not fit its model."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds; `path` is where it was read from."""

    model: str
    config: Mapping[str, Any]
    labels: tuple[str, ...]
    state_dict: Mapping[str, Tensor] = field(repr=False)
    path: Path | None = None


def read_checkpoint(
    path: str | Path,
    model: str | None = None,
    labels: Sequence[str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """A checkpoint of ours, or with `model` and `labels` a plain state_dict of torchvision's.

    model: "torchvision/<builder>"; labels: names by index, `__background__` first; config: options of that builder.
    For a checkpoint of ours the three must be left out. Nothing in the file is executed (`weights_only`).
    CheckpointError says what was found instead.
    """
    path = Path(path)
    content = read_tensors(path)
    if "format" in content:
        return _ours(path, content, given={"--model": model, "--labels": labels})
    if not content or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        raise CheckpointError(
            f"{path}: expected a RegionRT checkpoint or a plain state_dict, found {_summary(content)}"
        )
    if model is None or labels is None:
        raise CheckpointError(
            f"{path} is a plain state_dict of {len(content)} tensors: say what it is, "
            "with --model torchvision/<builder> and --labels FILE"
        )
    if model not in MODELS:
        raise CheckpointError(f"unknown model {model!r}: choose one of {', '.join(MODELS)}")
    return Checkpoint(model, dict(config or {}), _checked_labels(path, labels, MODELS[model].task), content, path)


def write_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write the whole file, or leave what was there. OutputError where the disk is full or not writable."""
    content = {
        "format": FORMAT,
        "model": checkpoint.model,
        "config": dict(checkpoint.config),
        "labels": list(checkpoint.labels),
        "state_dict": {k: v.detach().cpu().contiguous() for k, v in checkpoint.state_dict.items()},
    }
    with replace_file(path) as beside:
        torch.save(content, beside)


def module_from_checkpoint(checkpoint: Checkpoint) -> nn.Module:
    """The checkpoint's network with its weights, in eval mode; CheckpointError lists what does not fit."""
    where = checkpoint.path or "checkpoint"
    try:
        module = build_model(checkpoint.model, checkpoint.config, checkpoint.labels)
    except ModelError as error:
        raise CheckpointError(f"{where}: {error}") from error
    load_weights(module, checkpoint.state_dict, f"{where} ({checkpoint.model}, {len(checkpoint.labels)} labels)")
    return module


def load_weights(module: nn.Module, state_dict: Mapping[str, Tensor], what: str) -> None:
    """Load all of a state_dict or nothing. CheckpointError lists missing and unexpected keys and shapes that differ."""
    expected = module.state_dict()
    wrong = [
        f"{key} {_shape(value)} instead of {_shape(expected[key])}"
        for key, value in state_dict.items()
        if key in expected and value.shape != expected[key].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{what}: {len(wrong)} of the weights have other shapes: {_some(wrong)}; do model and labels fit?"
        )
    kept = {k: v.clone() for k, v in expected.items()}
    try:
        result = module.load_state_dict(dict(state_dict), strict=False)
    except RuntimeError as error:  # shapes of keys that torchvision renames as it loads
        module.load_state_dict(kept)
        raise CheckpointError(f"{what}: {' '.join(str(error).split())}") from error
    missing, unexpected = result.missing_keys, result.unexpected_keys
    if missing or unexpected:
        module.load_state_dict(kept)
        parts = []
        if missing:
            parts.append(f"{len(missing)} keys are missing: {_some([f'{k} {_shape(expected[k])}' for k in missing])}")
        if unexpected:
            found = [f"{k} {_shape(state_dict[k])}" for k in unexpected]
            parts.append(f"{len(unexpected)} keys are unexpected: {_some(found)}")
        raise CheckpointError(f"{what}: {'; '.join(parts)}")


def read_tensors(path: Path) -> dict[Any, Any]:
    """The dictionary in a file of `torch.save`, read with `weights_only`; CheckpointError for anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: what cannot be read is an error below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is not a file of weights: it holds other Python objects, which were not executed, or is damaged"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: expected a file of torch.save, could not read it ({reason})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary, found {_summary(content)}")
    return dict(content)


def _ours(path: Path, content: dict[Any, Any], given: Mapping[str, object]) -> Checkpoint:
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: format {content['format']!r}, this version reads {FORMAT!r}: "
            "use the version of RegionRT that wrote it"
        )
    types = {"model": str, "config": dict, "labels": list, "state_dict": dict}
    if wrong := [name for name, kind in types.items() if not isinstance(content.get(name), kind)]:
        raise CheckpointError(f"{path}: {', '.join(wrong)} missing or of a wrong type: not a whole checkpoint")
    if superfluous := [name for name, value in given.items() if value is not None]:
        raise CheckpointError(
            f"{path} is a RegionRT checkpoint and knows its own: leave out {' and '.join(superfluous)}"
        )
    if content["model"] not in MODELS:
        raise CheckpointError(f"{path}: unknown model {content['model']!r}, known are {', '.join(MODELS)}")
    weights = content["state_dict"]
    if bad := [k for k, v in weights.items() if not isinstance(k, str) or not isinstance(v, Tensor)]:
        raise CheckpointError(
            f"{path}: state_dict holds {len(bad)} entries that are no tensors: {_some(list(map(str, bad)))}"
        )
    labels = _checked_labels(path, content["labels"], MODELS[content["model"]].task)
    return Checkpoint(content["model"], content["config"], labels, weights, path)


def _checked_labels(path: Path, labels: Sequence[str], task: str) -> tuple[str, ...]:
    if task == "segmentation":
        if not all(isinstance(name, str) for name in labels) or why_not_labels(labels, task):
            raise CheckpointError(f"{path}: expected labels that are class names, found {_summary(labels)}")
        return tuple(labels)
    if len(labels) < 2 or labels[0] != BACKGROUND or not all(isinstance(name, str) for name in labels):
        raise CheckpointError(
            f"{path}: expected labels with {BACKGROUND!r} first, then the classes; found {_summary(labels)}"
        )
    return tuple(labels)


def _shape(value: Tensor) -> str:
    return str(list(value.shape))


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _summary(value: object) -> str:
    if isinstance(value, dict):
        return f"a dictionary with {_some([str(k)[:40] for k in value]) or 'nothing in it'}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} {[str(v)[:20] for v in value[:5]]}"
    return f"a {type(value).__name__}"
