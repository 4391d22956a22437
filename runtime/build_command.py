"""`python -m regionrt.runtime.build_command BUNDLE`: builds engines on the device, with the runtime alone."""

import argparse
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from .build import DEFAULT_OPTIONS, FORMS, HARDWARE_LEVELS, LOADERS, TARGETS, BuildOptions, build_engines
from .bundle import Artifact
from .errors import RegionRTError

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Builds, and returns the exit code: 0 done, 1 the build failed, 2 wrong use, 130 interrupted.

    Errors are one line on standard error, with a traceback only under --debug.
    """
    parser = _parser()
    try:
        asked = parser.parse_args(argv)
        options = _options(parser, asked)
    except SystemExit as stop:  # argparse's way to say --help (0) or wrong use (2)
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    show = _show if sys.stderr.isatty() and not asked.json else None
    start = "\n" if show else ""  # leaves the line of the progress
    try:
        artifacts = build_engines(asked.bundle, asked.target, options, show)
    except ValueError as error:
        print(f"regionrt build: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(f"{start}interrupted, the bundle is as it was", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if asked.debug:
            traceback.print_exc()
        defect = "" if isinstance(error, RegionRTError) else " (a defect of regionrt: --debug shows where)"
        print(f"{start}error: {error}{defect}", file=sys.stderr)
        return EXIT_FAILED
    if asked.json:
        print(json.dumps([artifact.to_json() for artifact in artifacts], indent=2))
    else:
        for artifact in artifacts:
            print(_line(artifact))
    return EXIT_DONE


def _options(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> BuildOptions:
    try:
        return BuildOptions(
            ops=asked.ops,
            compute_capability=tuple(filter(None, (part.strip() for part in asked.compute_capability.split(",")))),
            optimization_level=asked.optimization_level,
            workspace_mib=asked.workspace,
            version_compatible=asked.version_compatible,
            exclude_lean_runtime=asked.exclude_lean_runtime,
            hardware_compatibility=asked.hardware_compatibility,
            refittable=asked.refittable,
            timing_cache=asked.timing_cache,
            loader=asked.loader,
            timeout_s=asked.timeout,
            verbose=asked.verbose,
        )
    except ValueError as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="regionrt build", description="Build engines from a bundle's ONNX files.")
    parser.add_argument("bundle", type=Path, help="the bundle's folder")
    parser.add_argument("--target", choices=list(TARGETS), default="tensorrt-rtx", help="default: %(default)s")
    parser.add_argument(
        "--ops", choices=list(FORMS), help="form to build from; default: the target's first that there is"
    )
    parser.add_argument(
        "--compute-capability",
        default="",
        metavar="8.6,8.9",
        help="GPUs to build for (tensorrt-rtx); default: 8.0 and all newer that it knows",
    )
    parser.add_argument("--optimization-level", type=int, metavar="0-5", help="default: the library's own")
    parser.add_argument("--workspace", type=int, metavar="MIB", help="memory for one layer; default: the library's own")
    parser.add_argument("--version-compatible", action="store_true", help="later versions (same major) execute it too")
    parser.add_argument(
        "--exclude-lean-runtime", action="store_true", help="a version-compatible engine without host code"
    )
    parser.add_argument(
        "--hardware-compatibility", choices=HARDWARE_LEVELS, help="other GPUs execute it too (tensorrt)"
    )
    parser.add_argument("--refittable", action="store_true", help="its weights can be changed later")
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="keeps what was measured (tensorrt)")
    parser.add_argument(
        "--loader", choices=LOADERS, help="build through Polygraphy, or not; default: where installed (tensorrt)"
    )
    parser.add_argument(
        "--timeout", type=float, default=DEFAULT_OPTIONS.timeout_s, metavar="S", help="default: %(default)g"
    )
    parser.add_argument("--verbose", action="store_true", help="TensorRT's messages on standard error")
    parser.add_argument("--debug", action="store_true", help="a traceback with an error")
    parser.add_argument("--json", action="store_true", help="print the new artefacts as JSON")
    return parser


def _show(phase: str, fraction: float) -> None:
    print(f"\r\033[K{fraction:4.0%} {phase}", end="\n" if fraction >= 1 else "", file=sys.stderr, flush=True)


def _line(artifact: Artifact) -> str:
    certificate = artifact.engine or {}
    proof = certificate["proof"]
    return (
        f"{artifact.files[0]}: {certificate['engine_bytes'] / 1e6:.1f} MB in {certificate['build_seconds']:.1f} s, "
        f"compute capability {', '.join(certificate['compute_capabilities']) or 'unknown'}, "
        f"{proof['in_precision']} of {proof['layers']} {proof['of']} layers in {artifact.precision}"
    )


if __name__ == "__main__":
    sys.exit(main())
