"""Which class names become which labels: the data's own, a checkpoint's, or a chosen subset."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .errors import DataError

BACKGROUND = "__background__"


@dataclass(frozen=True)
class ClassMap:
    """labels: names by index, the first is the background. label_of: name -> label, for the classes in use only."""

    labels: tuple[str, ...]
    label_of: dict[str, int]


def map_classes(
    known: Sequence[str],
    used: Iterable[str],
    labels: Sequence[str] | None,
    classes: Sequence[str] | None,
    where: str,
) -> ClassMap:
    """Decide the labels of a data set.

    known: all classes the data defines, in its order; used: those that objects of this split have. labels: given by
    a checkpoint; every used class must be among them. classes: the subset to use, in the order of its labels;
    objects of other classes are left out. Raises DataError for a class that is not there.
    """
    if classes is not None:
        if not classes or len(set(classes)) != len(classes) or BACKGROUND in classes:
            raise DataError(f"classes: expected different names of object classes, found {_list(classes)}")
        absent = [name for name in classes if name not in (known if labels is None else labels)]
        if absent:
            owner = where if labels is None else "the checkpoint"
            raise DataError(
                f"classes {_list(absent)} were chosen, but {owner} has {_list(known if labels is None else labels[1:])}"
            )
        if not set(classes) & set(known):
            raise DataError(f"{where}: none of the chosen classes {_list(classes)} is in this data ({_list(known)})")
    if labels is None:
        names = tuple(known if classes is None else classes)
        return ClassMap((BACKGROUND, *names), {name: label for label, name in enumerate(names, start=1)})

    labels = tuple(labels)
    if len(labels) < 2 or labels[0] != BACKGROUND:
        raise DataError(f'labels: expected "{BACKGROUND}" and at least one class after it, found {_list(labels)}')
    label_of = {name: label for label, name in enumerate(labels) if label > 0 and labels.count(name) == 1}
    wanted = set(used) if classes is None else set(classes)
    unknown = sorted(wanted - set(label_of))
    if unknown:
        raise DataError(
            f"{where}: classes {_list(unknown)} are unknown to the checkpoint, which has {_list(labels[1:])}; "
            "choose the classes to use, or train with this data's classes"
        )
    if classes is not None:
        label_of = {name: label for name, label in label_of.items() if name in wanted}
    return ClassMap(labels, label_of)


def _list(names: Iterable[str], most: int = 12) -> str:
    names = list(names)
    shown = ", ".join(map(str, names[:most])) or "none"
    return shown + (f", … ({len(names)} in all)" if len(names) > most else "")
