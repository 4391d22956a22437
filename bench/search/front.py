"""From what choices do alone to what they may do together: the combinations that no other one is better than.

Two choices made together are taken to gain the sum of what they gain alone, and to lose the sum of what they lose. That
is a guess, which says what to measure next; no figure of a report comes from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
_MOST = 512  # combinations that are carried on; more lie closer together than what is measured varies


@dataclass(frozen=True)
class Choice(Generic[T]):
    """gain: a share of the time saved, or the logarithm of how much faster: what adds up. drop: points lost, ≥ 0."""

    value: T
    gain: float
    drop: float


@dataclass(frozen=True)
class Combination(Generic[T]):
    """One choice, or None, of each place, and the sums."""

    values: tuple[T | None, ...]
    gain: float
    drop: float


def best_combinations(places: Sequence[Sequence[Choice[T]]]) -> list[Combination[T]]:
    """The combinations of at most one choice of each place that no other gains more than at no larger a drop.

    From the one that chooses nothing to the one that gains most. Of more than 512 some are left out, evenly.
    """
    front: list[Combination[T]] = [Combination((), 0.0, 0.0)]
    for place in places:
        choices: list[tuple[T | None, float, float]] = [(None, 0.0, 0.0)]
        choices += [(choice.value, choice.gain, choice.drop) for choice in place]
        grown = [
            Combination((*known.values, value), known.gain + gain, known.drop + drop)
            for known in front
            for value, gain, drop in choices
        ]
        front = thinned(undominated(grown), _MOST)
    return front


def undominated(found: Sequence[Combination[T]]) -> list[Combination[T]]:
    """Those that nothing is better than, by rising gain and drop."""
    kept: list[Combination[T]] = []
    for one in sorted(found, key=lambda c: (c.drop, -c.gain)):
        if not kept or one.gain > kept[-1].gain:
            kept.append(one)
    return kept


def thinned(front: list[Combination[T]], most: int) -> list[Combination[T]]:
    """At most so many (two or more), evenly, with both ends."""
    if len(front) <= most:
        return front
    return [front[round(i * (len(front) - 1) / (most - 1))] for i in range(most)]
