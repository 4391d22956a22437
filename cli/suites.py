"""The suites of `regionrt bench --suite`: fixed comparisons, each with options of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import typer

from . import console
from .values import names_from, sizes_from

T = TypeVar("T")
OPTIONS_OF = {
    "ops": (),
    "peers": ("--data", "--weights", "--nets", "--sizes", "--rows"),
    "seeds": ("--data", "--nets", "--sizes", "--rows", "--cases", "--backbone", "--proposals"),
    "ablations": ("--data", "--weights", "--rows"),
    "soak": ("--data", "--rows", "--requests"),
}


def run_suite(
    suite: str,
    bundles: Sequence[Path],
    out: Path,
    data: str | None,
    seconds: float,
    threads: int | None,
    compile_seconds: float,
    own: Mapping[str, Any],
) -> tuple[str, bool]:
    """Runs a suite and writes its files; its table, and False where what a soak looks for was found."""
    if suite not in OPTIONS_OF:
        raise typer.BadParameter(f"--suite {suite}: choose {', '.join(OPTIONS_OF)}")
    given = {name: value for name, value in {**own, "--data": data}.items() if value is not None}
    if unknown := [name for name in given if name not in OPTIONS_OF[suite]]:
        raise typer.BadParameter(f"{', '.join(unknown)}: not with --suite {suite}")
    if suite == "soak":
        return _soak(bundles, out, data, threads, own)
    if bundles:
        raise typer.BadParameter(f"--suite {suite} makes its own nets: leave out BUNDLE")
    if suite == "ops":
        from regionrt.bench.suites import ops

        table = ops.run_ops(seconds, progress=console.say)
        ops.write(table, out)
        return table.to_markdown(), True
    if suite == "seeds":
        return _seeds(out, data, seconds, threads, own), True
    if suite == "ablations":
        return _ablations(out, data, threads, own), True
    return _peers(out, data, seconds, threads, compile_seconds, own), True


def _peers(
    out: Path, data: str | None, seconds: float, threads: int | None, compile_seconds: float, own: Mapping[str, Any]
) -> str:
    from regionrt.bench.suites import peers

    defaults = peers.PeersOptions()
    options = _made(
        replace,
        defaults,
        nets=names_from(own["--nets"]) or defaults.nets,
        sizes=sizes_from(own["--sizes"]) or defaults.sizes,
        rows=names_from(own["--rows"]) or defaults.rows,
        weights=own["--weights"],
        data=Path(data) if data else None,
        threads=threads,
        seconds=seconds,
        compile_seconds=compile_seconds,
    )
    report = peers.run_peers(options, progress=console.say, keep=lambda done: peers.write(done, out))
    return report.to_markdown()


def _seeds(out: Path, data: str | None, seconds: float, threads: int | None, own: Mapping[str, Any]) -> str:
    from regionrt.bench.suites import seeds

    sizes = sizes_from(own["--sizes"])
    if len(sizes) > 1:
        raise typer.BadParameter("--sizes: seeds are measured at one size: give one")
    defaults = seeds.SeedsOptions()
    case = _made(
        replace,
        defaults.case,
        backbone=own["--backbone"] or defaults.case.backbone,
        size=sizes[0] if sizes else defaults.case.size,
        proposals=defaults.case.proposals if own["--proposals"] is None else own["--proposals"],
        nets=names_from(own["--nets"]) or defaults.case.nets,
        rows=names_from(own["--rows"]) or defaults.case.rows,
        seconds=seconds,
    )
    options = _made(
        seeds.SeedsOptions,
        cases=names_from(own["--cases"]) or defaults.cases,
        data=Path(data) if data else None,
        threads=threads,
        case=case,
    )
    report = seeds.run_seeds(options, progress=console.say, keep=lambda done: seeds.write(done, out))
    return report.to_markdown()


def _ablations(out: Path, data: str | None, threads: int | None, own: Mapping[str, Any]) -> str:
    from regionrt.bench.suites import ablations

    defaults = ablations.AblationOptions()
    options = _made(
        replace,
        defaults,
        rows=names_from(own["--rows"]) or defaults.rows,
        data=data or defaults.data,
        weights=own["--weights"],
        threads=threads,
    )
    report = ablations.run_ablations(options, out, progress=console.say)
    ablations.write(report, out)
    return report.to_markdown()


def _soak(
    bundles: Sequence[Path], out: Path, data: str | None, threads: int | None, own: Mapping[str, Any]
) -> tuple[str, bool]:
    from regionrt.bench.suites import soak

    if len(bundles) != 1:
        raise typer.BadParameter("--suite soak: expected one BUNDLE")
    defaults = soak.SoakOptions()
    options = _made(
        replace,
        defaults,
        requests=defaults.requests if own["--requests"] is None else own["--requests"],
        rows=names_from(own["--rows"]) or defaults.rows,
        data=Path(data) if data else None,
        threads=threads,
    )
    report = soak.run_soak(bundles[0], options, progress=console.say, keep=lambda done: soak.write(done, out))
    return report.to_markdown(), report.passes


def _made(make: Callable[..., T], *given: Any, **options: Any) -> T:
    """Options of a suite; those that make no sense to it are the caller's mistake."""
    try:
        return make(*given, **options)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
