"""The verb that searches, tune, and what compress does with --max-drop."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from . import arguments, console
from .app import verb
from .arguments import checkpoint_from
from .values import names_from, numbers_from, sizes_from

Backend = Annotated[str, typer.Option("--backend", help="what is measured: onnxruntime or openvino, on this machine")]
Margin = Annotated[
    float, typer.Option("--margin", help="points of --max-drop kept back while searching: the splits differ")
]
Minutes = Annotated[
    float | None, typer.Option("--budget", metavar="MINUTES", help="begin no further trial after so long")
]
Seconds = Annotated[float, typer.Option("--seconds", help="of each comparison with the fp32 artefact, in turn")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads of every artefact")]
MaxImages = Annotated[int | None, typer.Option("--max-images", help="of the split that is searched, and judged, on")]
Trials = Annotated[int, typer.Option("--trials", help="combinations that are measured, at most")]
Points = Annotated[int, typer.Option("--points", help="ranks of each layer that are measured, at most")]
SearchSplit = Annotated[str, typer.Option("--split", help="that is searched on")]
JudgeSplit = Annotated[str, typer.Option("--judge-split", help="that what was found is judged on")]
CalibrateSplit = Annotated[str, typer.Option("--calibrate-split", help="photos for data-aware SVD and int8")]
CalibrateImages = Annotated[int, typer.Option("--calibration-images", help="how many of them")]
Seed = Annotated[int, typer.Option("--seed", help="of the bootstraps")]
Layers = Annotated[
    str | None, typer.Option("--layers", metavar="NAME,…", help="to split, patterns too; default: fully connected ones")
]
Spatial = Annotated[bool, typer.Option("--spatial", help="k×k convolutions too, as k×1 and 1×k")]


@verb()
def tune(
    checkpoint: Path,
    data: arguments.Data,
    out: Annotated[Path, typer.Option(metavar="DIR", help="bundle/, report.html and the journal to go on from")],
    max_drop: Annotated[float, typer.Option(help="points of AP50:95 (and mask AP), mIoU or localisation to lose")],
    backend: Backend = "onnxruntime",
    margin: Margin = 0.0,
    minutes: Minutes = None,
    trials: Trials = 8,
    points: Points = 4,
    precision: Annotated[
        str | None, typer.Option(metavar="bf16,int8", help="to try beside fp32; none: only fp32; default: all it runs")
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(metavar="HxW,…", help="canvases to try; none: only its own; default: smaller ones")
    ] = None,
    proposals: Annotated[
        str | None, typer.Option(metavar="N,…", help="numbers to try; none: only its own; default: fewer")
    ] = None,
    layers: Layers = None,
    spatial: Spatial = False,
    split: SearchSplit = "val",
    judge_split: JudgeSplit = "test",
    calibrate_split: CalibrateSplit = "train",
    calibration: arguments.CalibrationMethod = "percentile",
    calibration_images: CalibrateImages = 32,
    classes: arguments.Classes = None,
    max_images: MaxImages = None,
    seconds: Seconds = 5.0,
    threads: Threads = None,
    seed: Seed = 0,
    model: arguments.Model = None,
    labels: arguments.Labels = None,
    as_json: arguments.AsJson = False,
) -> int:
    """The fastest artefact within a budget: SVD ranks × precision × size × proposals, measured; exit code 1 if none."""
    from regionrt.bench.search.options import SearchOptions
    from regionrt.bench.search.tune import BUNDLE
    from regionrt.bench.search.tune import tune as run

    def chosen(text: str | None, of: Callable[[str], Any]) -> Any:
        return None if text is None else () if text == "none" else of(text)

    options = SearchOptions(
        backend, max_drop, margin=margin, minutes=minutes, confirm=trials, points=points,
        precisions=chosen(precision, names_from), sizes=chosen(sizes, sizes_from),
        proposals=chosen(proposals, numbers_from), layers=names_from(layers) or (), spatial=spatial, split=split,
        judged_on=judge_split, calibrated_on=calibrate_split, calibration=calibration,
        calibration_images=calibration_images, classes=names_from(classes), max_images=max_images, seconds=seconds,
        threads=threads, seed=seed,
    )  # fmt: skip
    source = checkpoint_from(checkpoint, model, labels)
    with _closest_shown(), console.steps("tune") as tell:
        result = run(source, data, options, out, tell)
    _report(result, out, as_json, out / BUNDLE)
    return 0


def search_ranks(source: Any, data: str, options: Any, out: Path, report: Path, as_json: bool) -> None:
    """`compress --max-drop`: write the checkpoint `out`, and the report into its folder. Errors as `rank_search`."""
    from regionrt.bench.search.rank_search import rank_search
    from regionrt.train.checkpoint import write_checkpoint

    with _closest_shown(), console.steps("ranks") as tell:
        result, compressed = rank_search(source, data, options, report, tell)
    write_checkpoint(out, compressed)
    _report(result, report, as_json, out)


@contextmanager
def _closest_shown() -> Iterator[None]:
    """What comes nearest is shown before the error that says that it is not near enough."""
    from regionrt.bench.search.final import BudgetError

    try:
        yield
    except BudgetError as error:
        trial = error.closest
        if trial is not None and trial.faster is not None:
            console.table(
                "closest", ["setting", "faster than fp32", "points lost"],
                [[str(trial.setting), f"{trial.ratio:.2f}×", f"{trial.drop or 0:.2f}"]], to=console.err,
            )  # fmt: skip
        raise


def _report(result: Any, folder: Path, as_json: bool, written: Path) -> None:
    from dataclasses import replace

    from regionrt.bench.search.report import view, write_report

    result = replace(result, commands=("regionrt " + shlex.join(sys.argv[1:]),))
    page = write_report(result, folder)[-1]
    if as_json:
        console.print_json(result.to_json())
        return
    shown = view(result)
    columns = ["", "p50 ms", "p90 ms", "faster", shown["metric"], "change (95 %)"]
    console.table(shown["title"], columns, [[row["name"], *row["cells"]] for row in shown["final"]])
    console.out.print(shown["lead"], markup=False, soft_wrap=True)
    for note in shown["notes"]:
        console.say(note)
    for curve in result.curves:
        if curve.left_alone:
            console.say(f"{curve.layer} is left alone: {curve.left_alone}")
    console.out.print(f"written: {written}\nreport: {page}", markup=False, soft_wrap=True)
