"""Mask R-CNN's ablations (He et al., arXiv:1703.06870, tables 2b, 2c, 2e) in one table: one detail changed at a time.

`regionrt bench --suite ablations --weights WEIGHTS --out FOLDER` trains each variant from the same seed, on the same
data and with the same settings, and writes ablations.json and ablations.md. Runs lie in FOLDER/runs: the same command
goes on after a kill. A one-map backbone of stride 16 on small canvases is where it matters how regions are pooled.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from regionrt.bench import figures
from regionrt.bench.accuracy import CONFIDENCE, judge
from regionrt.bench.environment import environment, without_folders
from regionrt.bench.schema import Accuracy, Difference
from regionrt.train.models import MODELS
from regionrt.train.options import TrainOptions
from regionrt.train.tasks import TASKS
from regionrt.train.torch_runner import torch_predictor
from regionrt.train.trainer import train

from .report_files import write_report

MODEL = "mask_rcnn"
BASE = "align"
METRICS = ("mask_AP", "AP")
DATA = "shapes:train=600,val=80,test=300,size=128x128,turn=30,most=4"
SMALL: Mapping[str, Any] = {
    "backbone": "squeezenet1_1", "size": [128, 128], "channels": 48, "representation": 128, "mask_layers": [32, 32],
    "anchor_sizes": [16, 32, 64], "rois_per_image": 24, "train_proposals": 300, "proposals": 100,
}  # fmt: skip
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Variant:
    """What differs from the base, and how many points of mask AP that makes in the paper (ResNet-50 on COCO)."""

    what: str
    config: Mapping[str, Any]
    in_paper: float | None = None


VARIANTS: Mapping[str, Variant] = {
    BASE: Variant("RoIAlign (average), sigmoid masks, FCN", {}),
    "align_max": Variant("RoIAlign (maximum)", {"pool": "align_max"}, 30.2 - 30.3),
    "max": Variant("RoIPool (maximum)", {"pool": "max"}, 26.9 - 30.3),
    "softmax": Variant("softmax masks", {"mask_loss": "softmax"}, 24.8 - 30.3),
    "mlp": Variant("MLP as mask head", {"mask_head": "mlp", "mask_layers": [128, 128]}, 31.5 - 33.6),
}


@dataclass(frozen=True)
class AblationOptions:
    """What is trained and judged. `ValueError` for what makes no sense.

    rows: of `VARIANTS`; the base is always among them. data: with masks. weights: ImageNet weights of the backbone;
    None: random ones. config: over `SMALL`. seeds: each variant is trained once from each. threads: None: as torch has.
    """

    rows: tuple[str, ...] = tuple(VARIANTS)
    data: str = DATA
    weights: Path | None = None
    config: tuple[tuple[str, Any], ...] = ()
    epochs: int = 5
    batch: int = 4
    lr: float = 0.01
    seeds: tuple[int, ...] = (0,)
    threads: int | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.rows) - set(VARIANTS)):
            raise ValueError(f"rows {', '.join(unknown)}: choose of {', '.join(VARIANTS)}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)}: give at least one, each once")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads {self.threads}: give 1 or more")
        self.training(self.seeds[0])

    @property
    def variants(self) -> dict[str, Variant]:
        return {name: variant for name, variant in VARIANTS.items() if name in {BASE, *self.rows}}

    def config_of(self, variant: Variant) -> dict[str, Any]:
        return {**SMALL, **dict(self.config), **variant.config}

    def training(self, seed: int) -> TrainOptions:
        return TrainOptions(
            epochs=self.epochs, batch=self.batch, lr=self.lr, init=self.weights, seed=seed, evaluate_every=0,
            resume=True,
        )  # fmt: skip


@dataclass(frozen=True)
class AblationReport:
    """accuracy: of each variant, one for each seed, with the differences to the base of the same seed."""

    environment: Mapping[str, Mapping[str, str]]
    command: str
    options: Mapping[str, Any]
    accuracy: Mapping[str, Sequence[Accuracy]]

    def to_json(self) -> dict[str, Any]:
        return {"format": "regionrt-ablations/1", **asdict(self)}

    def to_markdown(self) -> str:
        one = next(iter(self.accuracy.values()))[0]
        software = ", ".join(f"{name} {self.environment['software'][name]}" for name in ("torch", "torchvision"))
        lines = [
            "# Ablations of Mask R-CNN",
            "",
            f"`{self.command}`: {self.environment['machine']['CPU']}, {software}.",
            "",
            f"Points on {one.images} test images. Brackets: {CONFIDENCE:.0%} interval of the difference to the first "
            "row of the same seed, by drawing images (paired bootstrap): it tells what other photos would change, not "
            "what other seeds would. In the paper: mask AP on COCO, ResNet-50 (C4 of stride 16 in 2b and 2c, FPN in "
            "2e).",
            "",
            "| | mask AP | mask AP50 | box AP | mask AP against the first row | box AP against it | in the paper |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, found in self.accuracy.items():
            variant = VARIANTS[name]
            cells = [_values(found, metric) for metric in ("mask_AP", "mask_AP50", "AP")]
            cells += ["; ".join(figures.interval(_of(each, metric)) for each in found) for metric in METRICS]
            cells.append("" if variant.in_paper is None else figures.points(variant.in_paper, sign=True))
            lines.append(f"| {variant.what} | {' | '.join(cells)} |")
        return "\n".join([*lines, ""])


def run_ablations(options: AblationOptions, out: Path, *, progress: Tell | None = None) -> AblationReport:
    """Trains what is not trained yet in `out`/runs, and judges all of it on the test split.

    Raises TrainError where a run there had other settings, CheckpointError, DataError.
    """
    tell = progress or (lambda text: None)
    accuracy: dict[str, list[Accuracy]] = {name: [] for name in options.variants}
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads or before)
    try:
        facts = environment(torch.get_num_threads())
        for seed in options.seeds:
            best = {name: _trained(name, options, seed, out, tell) for name in options.variants}
            for name, found in _judged(best, options.data, tell).items():
                accuracy[name].append(found)
    finally:
        torch.set_num_threads(before)
    about = asdict(options) | {"weights": options.weights and options.weights.name, "config": dict(options.config)}
    return AblationReport(facts, _command(options), about, accuracy)


def _trained(name: str, options: AblationOptions, seed: int, out: Path, tell: Tell) -> Path:
    def report(row: Mapping[str, Any]) -> None:
        if "epoch" in row:
            tell(f"{name}, seed {seed}: epoch {row['epoch']} of {options.epochs}, loss {row['loss']:.3f}")

    folder = out / "runs" / f"{name}-{seed}"
    config = options.config_of(VARIANTS[name])
    return train(MODEL, options.data, folder, options.training(seed), config=config, report=report)


def _judged(best: Mapping[str, Path], data: str, tell: Tell) -> dict[str, Accuracy]:
    task = TASKS[MODELS[MODEL].task]
    predictors = {name: torch_predictor(path) for name, path in best.items()}
    test = task.open_data(data, "test", predictors[BASE].labels, None)
    return judge(
        predictors, test, task=task, reference=BASE,
        progress=lambda name, done, total: tell(f"{name}: {done} of {total} images judged") if done == total else None,
    )  # fmt: skip


def _of(found: Accuracy, metric: str) -> Difference | None:
    return next((each for each in found.differences if each.metric == metric), None)


def _values(found: Sequence[Accuracy], metric: str) -> str:
    """35.2, or of several seeds the mean and each: 35.2 (34.9, 35.5)."""
    values = [each.metrics.get(metric) for each in found]
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return figures.points(known[0] if known else None)
    return f"{figures.points(statistics.fmean(known))} ({', '.join(map(figures.points, values))})"


def _command(options: AblationOptions) -> str:
    """As it can be typed, without folders of this machine; `config` is given from Python only."""
    default, parts = AblationOptions(), ["python", "-m", "regionrt.bench.suites.ablations"]
    if options.weights:
        parts += ["--weights", options.weights.name]
    if set(options.variants) != set(VARIANTS):
        parts += ["--rows", ",".join(options.variants)]
    for name in ("data", "epochs", "batch", "lr", "threads"):
        if getattr(options, name) != getattr(default, name):
            parts += [f"--{name}", str(getattr(options, name))]
    if options.seeds != default.seeds:
        parts += ["--seeds", ",".join(map(str, options.seeds))]
    return without_folders(shlex.join(parts))


def write(report: AblationReport, folder: Path) -> list[Path]:
    """ablations.json and ablations.md in `folder`."""
    return write_report(report, folder, "ablations")


def main(arguments: Sequence[str] | None = None) -> None:
    default = AblationOptions()
    parser = argparse.ArgumentParser(
        prog="python -m regionrt.bench.suites.ablations", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for ablations.json, ablations.md and runs/")
    parser.add_argument("--data", default=default.data, help="a data set with masks")
    parser.add_argument("--weights", type=Path, help="ImageNet weights of the backbone; default: random ones")
    parser.add_argument("--rows", default=",".join(VARIANTS))
    parser.add_argument("--epochs", type=int, default=default.epochs)
    parser.add_argument("--batch", type=int, default=default.batch)
    parser.add_argument("--lr", type=float, default=default.lr)
    parser.add_argument("--seeds", default="0", help="each variant is trained once from each")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args(arguments)
    try:
        options = replace(
            default, rows=tuple(given.rows.split(",")), data=given.data, weights=given.weights, epochs=given.epochs,
            batch=given.batch, lr=given.lr, seeds=tuple(int(seed) for seed in given.seeds.split(",")),
            threads=given.threads,
        )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))
    report = run_ablations(options, given.out, progress=lambda text: print(text, file=sys.stderr, flush=True))
    write(report, given.out)
    print(report.to_markdown())


if __name__ == "__main__":
    main()
