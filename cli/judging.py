"""The verbs that measure and decide: bench, deploy, demo."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from regionrt.runtime.openmp import short_spins

from . import arguments, console, searching
from .app import verb
from .arguments import checkpoint_from, photos_from
from .suites import run_suite
from .values import names_from, ranks_from, size_from


@verb()
def bench(
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="[BUNDLE…]", help="may be none: PyTorch alone")
    ] = None,
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="REPORT", help="folder for report.json, report.md, report.html")
    ] = None,
    autotune: Annotated[
        bool, typer.Option("--autotune", help="only find each bundle's fastest artefact here, and keep that")
    ] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="the PyTorch baseline")] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="DIR", help="without it: latency only")] = None,
    split: str = "test",
    classes: arguments.Classes = None,
    seconds: Annotated[float, typer.Option(help="of interleaved measurement")] = 30.0,
    threads: Annotated[int | None, typer.Option(help="CPU threads of every candidate")] = None,
    batch: Annotated[int, typer.Option(help="throughput at this batch size too; 1: not")] = 4,
    image: Annotated[list[Path] | None, typer.Option(help="photos to time on where there is no data")] = None,
    max_images: Annotated[int | None, typer.Option(help="of the split, for accuracy")] = None,
    fresh: Annotated[bool, typer.Option(help="load time and memory, in a new process for each candidate")] = True,
    device: Annotated[str, typer.Option(help="PyTorch's: cpu or cuda")] = "cpu",
    compile_seconds: Annotated[float, typer.Option(help="most for each torch.compile; 0: do not try")] = 120.0,
    suite: Annotated[
        str | None,
        typer.Option(metavar="ops|peers|seeds|ablations|soak", help="a fixed comparison instead, with its own table"),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="peers: folder with <builder>.pth of each net, default: calibrated random ones; ablations: ImageNet "
            "weights of the backbone, default: random ones",
        ),
    ] = None,
    nets: Annotated[
        str | None,
        typer.Option(metavar="NET,…", help="peers: torchvision builders; seeds: rcnn, sppnet, …"),
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(metavar="HxW,…", help="peers: sizes of the photos, default two; seeds: one, 600x800")
    ] = None,
    rows: Annotated[
        str | None, typer.Option(metavar="ROW,…", help="peers, seeds, ablations, soak: only these candidates")
    ] = None,
    cases: Annotated[str | None, typer.Option(metavar="CASE,…", help="seeds: only these subjects")] = None,
    backbone: Annotated[str | None, typer.Option(help="seeds: of all nets; default: vgg16")] = None,
    proposals: Annotated[int | None, typer.Option(help="seeds: of each photo; default: 2000")] = None,
    requests: Annotated[int | None, typer.Option(help="soak: to each artefact; default: 10000")] = None,
    model: arguments.Model = None,
    labels: arguments.Labels = None,
    as_json: arguments.AsJson = False,
) -> int:
    """Latency and accuracy of bundles beside PyTorch, interleaved in one run; writes one report.

    `--suite peers`: whole nets against PyTorch's forms and torchvision's export in other engines. `--suite seeds`: the
    papers' ratios, R-CNN against SPPnet, Fast R-CNN, its SVD, and their training. `--suite ops`: single ops. All take
    `--seconds` for each comparison; `--data` is a folder of photos there. `--suite ablations`: trains and judges Mask
    R-CNN with RoIPool, softmax masks, an MLP as mask head; `--data` has masks there. `--suite soak`: thousands of
    requests to each artefact of a bundle: does memory grow, do answers change; exit code 1 if so.
    """
    if autotune and suite is not None:
        raise typer.BadParameter("--autotune and --suite are two different runs: give one of them")
    if autotune:
        _autotune(bundles or [], image or [], seconds, threads, as_json)
        return 0
    if out is None:
        raise typer.BadParameter("--out REPORT is missing: the folder that the report is written to")
    own = {
        "--weights": weights, "--nets": nets, "--sizes": sizes, "--rows": rows,
        "--cases": cases, "--backbone": backbone, "--proposals": proposals, "--requests": requests,
    }  # fmt: skip
    if suite is not None:
        if checkpoint:
            raise typer.BadParameter("--checkpoint: not with --suite")
        text, passes = run_suite(suite, bundles or [], out, data, seconds, threads, compile_seconds, own)
        if not as_json:
            console.out.print(text, markup=False, soft_wrap=True)
        else:
            console.print_json(json.loads((out / f"{suite}.json").read_text()))
        return 0 if passes else 1
    if given := [name for name, value in own.items() if value is not None]:
        raise typer.BadParameter(f"{', '.join(given)}: only with --suite")
    os.environ.update(short_spins())  # before PyTorch is loaded
    from regionrt.bench.report import BenchOptions, render
    from regionrt.bench.report import bench as run

    options = BenchOptions(
        split=split, classes=names_from(classes), seconds=seconds, threads=threads, batch=batch,
        images=tuple(map(str, image or ())),
        max_images=max_images, device=device, compile_seconds=compile_seconds, fresh=fresh,
    )  # fmt: skip
    source = checkpoint_from(checkpoint, model, labels) if checkpoint else None
    with console.steps("bench") as tell:
        report = run(bundles or [], source, data, options, progress=tell)
    files = render(report, out)
    _print_report(report, files[-1], as_json)
    return 0


def _autotune(bundles: list[Path], photos: list[Path], seconds: float, threads: int | None, as_json: bool) -> None:
    from regionrt.runtime import autotune, read_image

    if not bundles:
        raise typer.BadParameter("--autotune: expected at least one bundle")
    images = [read_image(path) for path in photos] or None
    found = {}
    for bundle in bundles:
        found[str(bundle)] = autotune(bundle, images, seconds=seconds, threads=threads)
    if as_json:
        console.print_json({name: [row.to_json() for row in rows] for name, rows in found.items()})
        return
    for name, measured in found.items():
        rows = [
            [row.backend, row.form, row.precision, f"{row.p50_ms:.1f} ms" if row.p50_ms else f"not here: {row.why_not}"]
            for row in measured
        ]
        console.table(f"{name}: from now on the first is taken here", ["backend", "form", "precision", "p50"], rows)


@verb()
def deploy(
    checkpoint: Path,
    data: arguments.Data,
    out: Annotated[Path, typer.Option(metavar="BUNDLE")],
    max_drop: Annotated[
        float, typer.Option(help="points of AP50:95 (and mask AP), mIoU or localisation that may be lost")
    ] = 0.5,
    rank: Annotated[
        str | None, typer.Option(metavar="fc6=1024,fc7=256", help="split layers by truncated SVD first")
    ] = None,
    precision: Annotated[str, typer.Option(help="see export; int8 gives layers back until the drop holds")] = "fp32",
    calibrate: arguments.Calibrate = None,
    calibration: arguments.CalibrationMethod = "percentile",
    calibration_images: arguments.CalibrationImages = 64,
    keep: arguments.Keep = None,
    most_error: arguments.MostError = 0.1,
    margin: searching.Margin = 0.0,
    size: arguments.Size = None,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="any size up to --size, in steps of the stride")] = False,
    score: arguments.Score = None,
    nms: arguments.Nms = None,
    window_score: arguments.WindowScore = None,
    merge: arguments.Merge = None,
    candidates: arguments.Candidates = None,
    detections: arguments.Detections = None,
    proposals: arguments.Proposals = None,
    target: Annotated[
        list[str] | None, typer.Option(help="tensorrt-rtx, tensorrt or none; default: what is installed")
    ] = None,
    split: Annotated[str, typer.Option(help="on which the contract is judged")] = "test",
    classes: arguments.Classes = None,
    seconds: Annotated[float, typer.Option(help="of interleaved measurement")] = 30.0,
    verify_images: Annotated[int, typer.Option(help="how many images to verify on")] = 32,
    compile_seconds: Annotated[
        float, typer.Option(help="most for each torch.compile of the baseline; 0: do not try")
    ] = 120.0,
    model: arguments.Model = None,
    labels: arguments.Labels = None,
    as_json: arguments.AsJson = False,
) -> None:
    """Compress, export, build, verify and bench in one; refuses (exit code 1) when too much accuracy is lost."""
    os.environ.update(short_spins())
    from regionrt.bench.report import BenchOptions
    from regionrt.export import ExportOptions
    from regionrt.export.compress.checkpoint import CompressOptions, compress_checkpoint

    from .deploy import DeployOptions
    from .deploy import deploy as run

    ranks = ranks_from(rank) if rank else None
    options = DeployOptions(
        max_drop=max_drop,
        margin=margin,
        export=ExportOptions(
            precision=precision, size=size_from(size), dynamic=dynamic, score=score, nms=nms,
            window_score=window_score, merge=merge, candidates=candidates, detections=detections, proposals=proposals,
            calibration=calibration, keep=names_from(keep) or (), most_error=most_error,
        ),
        bench=BenchOptions(
            split=split, classes=names_from(classes), seconds=seconds, compile_seconds=compile_seconds
        ),
        targets=None if target is None else tuple(name for name in target if name != "none"),
        verify_images=verify_images,
    )  # fmt: skip
    source = checkpoint_from(checkpoint, model, labels)
    with console.steps("deploy") as tell:
        report = run(
            source,
            data,
            out,
            options,
            compress=(lambda c: compress_checkpoint(c, CompressOptions(ranks))[0]) if ranks else None,
            photos=photos_from(calibrate, calibration_images) if calibrate else None,
            commands=("regionrt " + shlex.join(sys.argv[1:]),),
            progress=tell,
        )
    _print_report(report, out / "report.html", as_json)


def _print_report(report: Any, page: Path, as_json: bool) -> None:
    if as_json:
        console.print_json(report.to_json())
        return
    from regionrt.bench.headline import metric_label
    from regionrt.bench.wording import words_of

    metric = "AP" if report.task == "instance-segmentation" else words_of(report.task).metric
    rows = []
    for row in report.candidates:
        latency = [f"{row.latency.p50_ms:.1f}", f"{row.latency.p90_ms:.1f}"] if row.latency else ["not run", ""]
        faster = f"{row.speedup_over_eager.ratio:.2f}×" if row.speedup_over_eager else ""
        ap = row.accuracy.metrics.get(metric) if row.accuracy else None
        lost = next((d for d in row.accuracy.differences if d.metric == metric), None) if row.accuracy else None
        change = f"{lost.points:+.2f} [{lost.low:+.2f}, {lost.high:+.2f}]" if lost else ""
        rows.append([row.name, *latency, faster, f"{100 * ap:.2f}" if ap is not None else "", change])
    console.table(
        report.title, ["candidate", "p50 ms", "p90 ms", "faster", metric_label(metric), "change (95 %)"], rows
    )
    for note in (*report.notes, f"report: {page}"):
        console.out.print(note, markup=False, soft_wrap=True)


@verb()
def demo(out: Annotated[Path, typer.Option(metavar="DIR", help="everything goes there")] = Path("demo")) -> int:
    """The whole road on data it makes itself: train, evaluate, export, build, verify, infer, bench."""
    os.environ.update(short_spins())
    from .demo import demo as run

    return run(out)
