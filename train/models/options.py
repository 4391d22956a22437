"""Options of models as plain JSON values, in checkpoints and behind `--set`: read with a check of every type."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from .errors import ModelError

C = TypeVar("C", bound="Options")


@dataclass(frozen=True)
class Options:
    """Base of the models' options: a frozen dataclass, whose annotations are what its fields may hold."""

    @classmethod
    def from_json(cls: type[C], config: Mapping[str, Any]) -> C:
        """From a checkpoint's or the user's plain values; ModelError names keys that do not exist, and wrong types."""
        known = types_of(cls)
        if unknown := sorted(set(config) - set(known)):
            raise ModelError(f"unknown option {', '.join(map(repr, unknown))}: known are {', '.join(sorted(known))}")
        values = {name: tupled(value) for name, value in config.items()}
        for name, value in values.items():
            if not _fits(value, known[name]):
                raise ModelError(f"{name} {listed(value)!r}: give {_said(known[name])}")
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        return {k: listed(v) for k, v in asdict(self).items() if v is not None and v != {}}


def tupled(value: Any) -> Any:
    """JSON's lists as tuples, at every depth."""
    return tuple(map(tupled, value)) if isinstance(value, (list, tuple)) else value


def listed(value: Any) -> Any:
    """Tuples as JSON's lists, at every depth."""
    return [listed(v) for v in value] if isinstance(value, (list, tuple)) else value


def types_of(cls: type) -> dict[str, Any]:
    """The annotated type of each field of a dataclass."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type; whole numbers are numbers too, true and false are none."""
    if kind is Any:
        return True
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:  # its length, where it is fixed, is checked with what the option means
        each = parts[0] if parts[-1] is ... else typing.Union[parts]  # noqa: UP007
        return isinstance(value, tuple) and all(_fits(item, each) for item in value)
    if kind is float:
        return _fits(value, int) or (isinstance(value, float) and math.isfinite(value))
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, Mapping if origin is not None else kind)


def _said(kind: Any) -> str:
    """An annotated type in words."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_said(part) for part in parts)
    if origin is tuple:
        return f"a list of {_PLURAL.get(parts[0], 'values')}"
    return _WORDS.get(kind, "names and values")


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a name", type(None): "null"}
_PLURAL = {int: "whole numbers", float: "numbers"}
