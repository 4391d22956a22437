"""The verbs between checkpoint and bundle: compress, export, verify."""

from pathlib import Path
from typing import Annotated, Any

import typer

from . import arguments, console, searching
from .app import verb
from .arguments import checkpoint_from, photos_from
from .values import BACKGROUND, names_from, numbers_from, ranks_from, size_from


@verb()
def compress(
    checkpoint: Path,
    out: Annotated[Path, typer.Option(metavar="CKPT")],
    rank: Annotated[str | None, typer.Option(metavar="fc6=1024,fc7=256", help="rank of each layer to split")] = None,
    energy: Annotated[
        float | None, typer.Option(help="instead: the smallest ranks that keep this share, e.g. 0.9")
    ] = None,
    ratio: Annotated[float | None, typer.Option(help="instead: this share of the weights stays, e.g. 0.5")] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="instead: the fastest ranks, as measured, that lose at most so many points")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(metavar="NAME,…", help="not for --rank; patterns too; default: fully connected ones"),
    ] = None,
    spatial: Annotated[bool, typer.Option("--spatial", help="k×k convolutions too, as k×1 and 1×k")] = False,
    multiple: Annotated[int, typer.Option(help="ranks that are not given are multiples of it")] = 16,
    data: Annotated[
        str | None, typer.Option("--data", metavar="DIR", help="photos: keeps the layers' outputs, not their weights")
    ] = None,
    split: Annotated[str, typer.Option(help="of the data, for photos")] = "train",
    images: Annotated[int, typer.Option(help="of the split; every fifth only measures the error")] = 50,
    backend: searching.Backend = "onnxruntime",
    margin: searching.Margin = 0.0,
    minutes: searching.Minutes = None,
    trials: searching.Trials = 8,
    points: searching.Points = 4,
    max_images: searching.MaxImages = None,
    seconds: searching.Seconds = 5.0,
    threads: searching.Threads = None,
    search_split: Annotated[str, typer.Option(help="--max-drop: searched on")] = "val",
    judge_split: searching.JudgeSplit = "test",
    seed: searching.Seed = 0,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="--max-drop: report and journal; default: CKPT.search")
    ] = None,
    model: arguments.Model = None,
    labels: arguments.Labels = None,
    as_json: arguments.AsJson = False,
) -> None:
    """Split layers by truncated SVD; the result is a checkpoint that trains (--from) and exports as before."""
    from regionrt.export.compress.checkpoint import CompressOptions, compress_checkpoint
    from regionrt.train.checkpoint import write_checkpoint

    if sum(given is not None for given in (rank, energy, ratio, max_drop)) != 1:
        raise typer.BadParameter("say how far to compress by one of --rank, --energy, --ratio and --max-drop")
    if max_drop is not None:
        from regionrt.bench.search.options import SearchOptions

        if data is None:
            raise typer.BadParameter("--max-drop needs --data DIR: accuracy is measured on it")
        search = SearchOptions(
            backend, max_drop, margin=margin, minutes=minutes, confirm=trials, points=points, multiple=multiple,
            layers=names_from(layers) or (), spatial=spatial, split=search_split, judged_on=judge_split,
            calibrated_on=split, calibration_images=images, max_images=max_images, seconds=seconds, threads=threads,
            seed=seed,
        )  # fmt: skip
        source = checkpoint_from(checkpoint, model, labels)
        searching.search_ranks(source, data, search, out, report or out.with_name(f"{out.name}.search"), as_json)
        return
    options = CompressOptions(
        ranks=ranks_from(rank) if rank is not None else {}, energy=energy, ratio=ratio, layers=names_from(layers) or (),
        spatial=spatial, multiple=multiple,
    )  # fmt: skip
    source = checkpoint_from(checkpoint, model, labels)
    photos = _photos_of(source, data, split, images) if data is not None else None
    with console.steps("compress") as tell:
        compressed, done = compress_checkpoint(source, options, photos, tell)
    write_checkpoint(out, compressed)
    if as_json:
        console.print_json({"checkpoint": str(out), "layers": [layer.to_json() for layer in done]})
    else:
        _print_layers(out, done, len(photos) if photos else 0)


def _photos_of(source: Any, data: str, split: str, images: int) -> Any:
    """Of a split, evenly over it."""
    from regionrt.export.compress.calibration import Photo, spread
    from regionrt.train.models import MODELS
    from regionrt.train.tasks import TASKS

    chosen = TASKS[MODELS[source.model].task].open_data(data, split, source.labels, None)
    samples = [chosen[i] for i in spread(range(len(chosen)), images)]
    return [Photo(sample.name, sample.image) for sample in samples]


def _print_layers(out: Path, report: Any, photos: int) -> None:
    """Narrow enough for 80 columns: weights in thousands, and the method only where it is not the title's."""

    def percent(share: float | None) -> str:
        return "–" if share is None else f"{100 * share:.1f}%"

    usual = "data-aware" if photos else "svd"
    columns, rows = ["layer", "rank", "k weights", "after", "energy"], []
    for x in report:
        name = x.name if x.method == usual else f"{x.name} ({x.method})"
        rows.append([name, str(x.rank or "–"), *(f"{n / 1000:.1f}" for n in (x.weights_before, x.weights_after))])
        rows[-1] += [percent(x.energy)] + ([percent(x.output_error), percent(x.svd_error)] if photos else [])
    title = f"{out}: {usual}"
    if photos:
        columns += ["error", "of svd"]
        title += f" on {photos} images; output errors on every fifth"
    console.table(title, columns, rows)
    for layer in report:
        if layer.left_alone:
            console.say(f"{layer.name} is left alone: {layer.left_alone}")


@verb()
def export(
    checkpoint: Path,
    out: Annotated[Path, typer.Option(metavar="BUNDLE")],
    model: arguments.Model = None,
    labels: arguments.Labels = None,
    precision: Annotated[
        str, typer.Option(help="fp32, fp16 (for GPUs), bf16 (for CPUs that have it), int8, or fp8 (GPUs from 8.9 on)")
    ] = "fp32",
    ops: Annotated[
        str | None,
        typer.Option(
            help="forms of our ops: staged,native,portable,plugin; default: all of the precision's but plugin"
        ),
    ] = None,
    size: arguments.Size = None,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="any size up to --size, in steps of the stride")] = False,
    score: arguments.Score = None,
    nms: arguments.Nms = None,
    window_score: arguments.WindowScore = None,
    merge: arguments.Merge = None,
    candidates: arguments.Candidates = None,
    detections: arguments.Detections = None,
    proposals: arguments.Proposals = None,
    calibrate: arguments.Calibrate = None,
    calibration: arguments.CalibrationMethod = "percentile",
    calibration_images: arguments.CalibrationImages = 64,
    keep: arguments.Keep = None,
    most_error: arguments.MostError = 0.1,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="segmentation: of every class too")] = False,
    as_json: arguments.AsJson = False,
) -> None:
    """Checkpoint → bundle: ONNX files, weights, labels, manifest."""
    from regionrt.export import ExportOptions, export_bundle
    from regionrt.runtime.bundle import Manifest

    options = ExportOptions(
        precision=precision, ops=names_from(ops), size=size_from(size), dynamic=dynamic, score=score, nms=nms,
        window_score=window_score, merge=merge, candidates=candidates, detections=detections, proposals=proposals,
        probabilities=probabilities, calibration=calibration, keep=names_from(keep) or (), most_error=most_error,
    )  # fmt: skip
    source = checkpoint_from(checkpoint, model, labels)
    photos = photos_from(calibrate, calibration_images) if calibrate else None
    with console.steps("export") as tell:
        export_bundle(source, out, options, photos=photos, progress=tell)
    _print_bundle(Manifest.read(out), as_json)
    if photos is not None and not as_json:
        _print_precision(out)


def _print_precision(bundle: Path) -> None:
    """What is computed in which precision, and the layers that are not in the one asked for."""
    import json

    from regionrt.export.bundle import PRECISION_TABLE

    table = json.loads((bundle / PRECISION_TABLE).read_text(encoding="utf-8"))
    shares = [
        f"{of['layers']} layers in {name} ({of['flops']:.1%} of the work)" for name, of in table["shares"].items()
    ]
    console.say(f"{table['calibration']} on {table['photos']} images: {', '.join(shares)}")
    for layer in table["layers"]:
        if layer["kept"]:
            console.say(f"{layer['name']} stays in fp32: {layer['kept']}")


def _print_bundle(manifest: Any, as_json: bool) -> None:
    if as_json:
        console.print_json(manifest.to_json())
        return
    canvas = manifest.canvas
    size = f"{'up to ' if canvas.dynamic else ''}{canvas.height}×{canvas.width}"
    total = sum(entry["bytes"] for entry in manifest.files.values())
    rows = [[a.backend, a.form, a.precision, a.files[0]] for a in manifest.artifacts]
    classes = sum(name != BACKGROUND for name in manifest.labels)
    title = f"{manifest.folder}: {manifest.model}, {classes} classes, {size} px, {total / 1e6:.1f} MB"
    console.table(title, ["backend", "form", "precision", "file"], rows)


@verb()
def verify(
    bundle: Path,
    checkpoint: Annotated[Path, typer.Option()],
    data: arguments.Data,
    split: str = "test",
    classes: arguments.Classes = None,
    images: Annotated[int, typer.Option(help="how many of the split")] = 32,
    batch: Annotated[str, typer.Option(help="batch sizes, comma-separated; stages are fed at the first")] = "1,4",
    model: arguments.Model = None,
    labels: arguments.Labels = None,
    as_json: arguments.AsJson = False,
) -> int:
    """PyTorch against the bundle, stage by stage and end to end, on real images; exit code 1 where they differ."""
    from regionrt.bench.wording import words_of
    from regionrt.export.verify import verify as run
    from regionrt.train.checkpoint import module_from_checkpoint
    from regionrt.train.models import MODELS
    from regionrt.train.tasks import TASKS

    sizes = numbers_from(batch)
    if min(sizes) < 1:
        raise typer.BadParameter(f"--batch: expected sizes of at least 1 such as 1,4, found {batch!r}")
    if images < 1:
        raise typer.BadParameter(f"--images: expected at least 1, found {images}")
    source = checkpoint_from(checkpoint, model, labels)
    task = TASKS[MODELS[source.model].task]
    chosen = task.open_data(data, split, source.labels, names_from(classes))
    samples = [chosen[i] for i in range(min(images, len(chosen)))]
    with console.steps("verify") as tell:
        verdicts = run(
            bundle,
            module_from_checkpoint(source),
            [(sample.name, sample.image()) for sample in samples],
            batches=sizes,
            progress=tell,
        )
    if as_json:
        console.print_json([verdict.to_json() for verdict in verdicts])
    else:
        for verdict in verdicts:
            _print_verdict(verdict, words_of(task.name).agreed)
    return 0 if all(verdict.passed for verdict in verdicts) else 1


def _print_verdict(verdict: Any, compared: str) -> None:
    rows = [
        [c.stage, c.value, f"{c.error:.1e}", f"{c.limit:.0e}", "ok" if c.passed else "DIFFERS", c.image]
        for c in verdict.checks
    ]
    for a in verdict.agreements:
        verdict_of = "ok" if a.share >= verdict.tolerance.matched else "DIFFERS"
        matched = f"{a.matched} of {max(a.eager, a.artefact)}"
        rows.append([f"end to end, batch {a.batch}", compared, matched, "", verdict_of, a.worst_image])
    columns = ["stage", "value", "error / matched", "limit", "", "worst image"]
    console.table(f"{verdict.artefact}, {verdict.images} images", columns, rows)
    if verdict.first_difference:
        console.say(f"first difference: {verdict.first_difference}")
