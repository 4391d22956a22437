"""How figures are written in a report: milliseconds, points, sizes, ratios, with as many digits as they deserve."""

from __future__ import annotations

from .schema import Candidate, Difference, Latency, Ratio

NONE = "–"


def significant(value: float, digits: int = 3) -> str:
    """`value` with so many significant digits, at most three decimals, no exponent: 0.123, 1.23, 12.3, 123, 1,234."""
    if value == 0:
        return "0"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    decimals = min(3, max(0, digits - whole))
    if decimals == 0:
        return f"{value:,.0f}"
    rounded = f"{value:.{decimals}f}"
    grown = len(rounded.lstrip("-").split(".")[0]) > max(whole, 1)  # 9.996 became 10.00
    return f"{value:.{decimals - 1}f}" if grown else rounded


def milliseconds(value: float | None) -> str:
    """42.1 (the unit stands in the column's head)."""
    return NONE if value is None else significant(value)


def change(before: Latency, after: Latency) -> str:
    """205 → 62.2 ms, of the medians."""
    return f"{milliseconds(before.p50_ms)} → {milliseconds(after.p50_ms)} ms"


def seconds(value: float | None) -> str:
    """0.34 s, 12 s, 3 min 05 s."""
    if value is None:
        return NONE
    if value >= 90:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest:02d} s"
    return f"{significant(value, 2)} s"


def size(value: int | None) -> str:
    """512 B, 12.4 MB, 1.23 GB (decimal units, as disks and networks count)."""
    if value is None:
        return NONE
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{significant(value / scale)} {unit}"
    return f"{value} B"


def times(value: Ratio | None) -> str:
    """4.83×."""
    if value is None:
        return NONE
    return f"{ratio(value.ratio)}×"


def ratio(value: float) -> str:
    """0.58, 4.83, 12.1, 146."""
    return f"{value:.2f}" if value < 9.995 else significant(value)


def points(value: float | None, *, sign: bool = False) -> str:
    """A fraction as points: 0.5123 → 51.2; with sign a difference that already is in points: +0.12, −0.40, 0.00."""
    if value is None:
        return NONE
    if not sign:
        return f"{100 * value:.1f}"
    text = f"{value:+.2f}".replace("-", "−")
    return "0.00" if text in ("+0.00", "−0.00") else text


def interval(value: Difference | None) -> str:
    """−0.12 [−0.40, +0.20]."""
    if value is None:
        return NONE
    return f"{points(value.points, sign=True)} [{points(value.low, sign=True)}, {points(value.high, sign=True)}]"


def verdict(value: Difference, images: int) -> str:
    """What a difference's interval says, in words."""
    if value.low > 0:
        return f"higher than PyTorch's by more than chance on these {images} images"
    if value.high < 0:
        return f"lower than PyTorch's by more than chance on these {images} images"
    if value.low == value.high == 0:
        return f"the same as PyTorch's on all {images} images"
    return f"no difference beyond chance on these {images} images"


def difference(row: Candidate, metric: str) -> Difference | None:
    """The row's difference in `metric`, if it was judged."""
    if row.accuracy is None:
        return None
    return next((d for d in row.accuracy.differences if d.metric == metric), None)
