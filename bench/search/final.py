"""The last step of a search: what it found beside the base, timed in turn and judged on a split it has not seen."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regionrt.export.verify import verify
from regionrt.train.checkpoint import module_from_checkpoint
from regionrt.train.torch_runner import torch_predictor

from ..accuracy import judge
from ..errors import BenchError
from ..latency import speedup
from ..schema import Accuracy, Difference, Latency, Ratio
from .settings import Setting
from .trial import Trial
from .workbench import Workbench

TORCH, BASE, BY_HAND, CHOSEN = "PyTorch eager", "fp32, as it is", "best single setting", "found"
_LONGER = 3  # the final comparison lasts so many times as long as one of the search


class BudgetError(BenchError):
    """No artefact keeps the budget, or none that does is faster; `closest` is the one with the best figures."""

    def __init__(self, text: str, closest: Trial | None = None) -> None:
        super().__init__(text)
        self.closest = closest


@dataclass(frozen=True)
class Row:
    """One of the compared. faster: than the base. difference: to PyTorch eager on the judged split, worst metric."""

    name: str
    setting: Setting | None
    latency: Latency
    faster: Ratio | None
    accuracy: Accuracy
    difference: Difference | None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "setting": self.setting.to_json() if self.setting else None}


@dataclass(frozen=True)
class Final:
    """rows: PyTorch, the base, the best single setting where there is one, and what was found, timed in one run.

    over_hand: how many times as fast as the best single setting what was found is.
    """

    rows: tuple[Row, ...]
    over_hand: Ratio | None
    split: str
    images: int
    rounds: int

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)


def compare_and_judge(bench: Workbench, chosen: Trial, by_hand: Trial | None, out: Path) -> Final:
    """Build what was chosen into the folder `out`, verify it against its own PyTorch net, compare, and judge.

    Raises BudgetError where it loses more than the budget on the judged split, or differs from its PyTorch net.
    """
    options = bench.options
    alone = by_hand if by_hand is not None and by_hand.setting not in (chosen.setting, Setting()) else None
    bench.say(f"{chosen.setting}: export")
    bench.build(chosen.setting, out, final=True)
    _verify(bench, chosen, out)
    with ExitStack() as stack:
        predictors = {TORCH: stack.enter_context(torch_predictor(bench.checkpoint)), BASE: bench.base}
        if alone is not None:
            folder = bench.build(alone.setting, bench.scratch / "by hand")
            predictors[BY_HAND] = stack.enter_context(bench.open(folder, alone.setting))
        predictors[CHOSEN] = stack.enter_context(bench.open(out, chosen.setting))
        bench.say("latency, in turn")
        timed = bench.times(predictors, _LONGER * options.seconds)
        latencies: Mapping[str, Latency] = timed.latencies
        data = bench.judged_data()
        judged = judge(
            predictors, data, task=bench.task, reference=TORCH, max_images=options.max_images,
            resamples=options.resamples, seed=options.seed,
            progress=lambda name, done, total: bench.say(f"judge: {name}, image {done} of {total}"),
        )  # fmt: skip
    settings = {BASE: Setting(), BY_HAND: alone.setting if alone else None, CHOSEN: chosen.setting}
    rows = tuple(
        Row(
            name,
            settings.get(name),
            latencies[name],
            None if name == BASE else speedup(latencies[BASE], latencies[name], options.seed),
            judged[name],
            min(judged[name].differences, key=lambda d: d.points, default=None),
        )
        for name in predictors
    )
    over_hand = speedup(latencies[BY_HAND], latencies[CHOSEN], options.seed) if alone is not None else None
    final = Final(rows, over_hand, options.judged_on, rows[-1].accuracy.images, timed.rounds)
    lost = rows[-1].difference
    if lost is None:
        raise BenchError(f"the {options.judged_on} split has nothing to judge by: give another with --judge-split")
    if -lost.points > options.max_drop:
        raise BudgetError(
            f"{chosen.setting} loses {chosen.drop:.2f} points on {options.split}, but {-lost.points:.2f} of "
            f"{lost.metric} on {options.judged_on} ({lost.confidence:.0%} interval {-lost.high:.2f} to "
            f"{-lost.low:.2f}, {final.images} images), allowed are {options.max_drop:g}: nothing was written; search "
            "with a --margin for what the splits differ by, or on more images",
            chosen,
        )
    return final


def _verify(bench: Workbench, chosen: Trial, folder: Path) -> None:
    images = list(zip(bench.timed_on.names, bench.timed_on.images, strict=True))[: bench.options.verify_images]
    bench.say("verify")
    module = module_from_checkpoint(bench.checkpoint_of(chosen.setting))
    for verdict in verify(folder, module, images, batches=(1,)):
        if not verdict.passed:
            raise BudgetError(
                f"{chosen.setting}: {verdict.artefact} differs from its PyTorch net: {verdict.first_difference}", chosen
            )
