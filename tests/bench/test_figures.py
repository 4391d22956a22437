"""How figures are written."""

import pytest

from regionrt.bench import figures
from regionrt.bench.environment import without_folders
from regionrt.bench.schema import Difference
from regionrt.bench.svg import Axis, Name, place_names, value_axis


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.12345, "0.123"), (1.2345, "1.23"), (9.996, "10.0"), (12.345, "12.3"), (99.96, "100"),
     (123.45, "123"), (999.6, "1,000"), (1234.5, "1,234"), (-1.5, "-1.50")],
)  # fmt: skip
def test_significant(value, text):
    assert figures.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (512, "512 B"), (5_420_000, "5.42 MB"), (999_999, "1,000 kB"), (2.5e9, "2.50 GB")]
)
def test_size(value, text):
    assert figures.size(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0.314, "0.31 s"), (12.3, "12 s"), (185.4, "3 min 05 s")])
def test_seconds(value, text):
    assert figures.seconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.584, "0.58"), (4.826, "4.83"), (9.996, "10.0"), (146.4, "146")])
def test_ratio(value, text):
    assert figures.ratio(value) == text


def difference(points, low, high):
    return Difference("AP", points, low, high, 0.95, 1000, 0)


def test_intervals_use_a_real_minus_and_no_minus_zero():
    assert figures.interval(difference(-0.12, -0.404, 0.2)) == "−0.12 [−0.40, +0.20]"
    assert figures.interval(difference(-0.0001, 0.0, 0.001)) == "0.00 [0.00, 0.00]"
    assert figures.points(0.5123) == "51.2"


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(-0.4, 0.2, "beyond chance"), (-0.4, -0.1, "lower"), (0.1, 0.4, "higher"), (0.0, 0.0, "the same")],
)
def test_verdict_follows_the_interval(low, high, words):
    assert words in figures.verdict(difference((low + high) / 2, low, high), 72)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/b/native.onnx: refused", "…/native.onnx: refused"),
        ("a/b of 3/4 'see /tmp/x/y.py'", "a/b of 3/4 'see …/y.py'"),
        ("no path", "no path"),
    ],
)
def test_folders_are_left_out_of_errors(text, shown):
    assert without_folders(text) == shown


def test_axes_have_round_ticks_inside():
    linear = value_axis([12.0, 48.0], 0, 100, zero=True)
    assert linear.ticks(5) == pytest.approx([0, 20, 40])
    assert linear(0.0) == 0
    wide = value_axis([3.0, 900.0], 0, 100, zero=True)
    assert wide.log
    assert all(wide.low <= tick <= wide.high for tick in wide.ticks(6))
    assert wide(3.0) < wide(30.0) < wide(300.0)
    assert Axis(5.0, 5.2, 0, 10).ticks(5) == pytest.approx([5.0, 5.05, 5.1, 5.15, 5.2])


def test_a_single_value_has_an_axis():
    axis = value_axis([7.0, 7.0], 0, 10, zero=False)
    assert axis.low < 7.0 < axis.high


def test_names_do_not_cover_each_other():
    names = [Name(100, 100, "first candidate", ""), Name(104, 101, "second candidate", ""), Name(108, 99, "third", "")]
    placed = place_names(names, (0, 0, 400, 200), [])
    boxes = []
    for text, name in zip(placed, names, strict=True):
        x, y = (float(part.split('"')[1]) for part in text.split()[1:3])
        width = 6.6 * len(name.text)
        boxes.append((x if 'anchor="start"' in text else x - width, y, width))
    for i, (x0, y0, w0) in enumerate(boxes):
        for x1, y1, w1 in boxes[:i]:
            assert abs(y0 - y1) >= 12 or x0 + w0 <= x1 or x1 + w1 <= x0
