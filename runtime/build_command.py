"""`python -m regionrt.runtime.build_command BUNDLE`: builds engines on the device, with the runtime alone."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from .build import DEFAULT_OPTIONS, TARGETS, BuildOptions, build_engines
from .bundle import Artifact
from .errors import RegionRTError


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 built, 1 the build failed, 2 wrong use (argparse exits by itself)."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    try:
        options = BuildOptions(
            ops=asked.ops,
            compute_capability=tuple(filter(None, (part.strip() for part in asked.compute_capability.split(",")))),
            optimization_level=asked.optimization_level,
            workspace_mib=asked.workspace,
            timeout_s=asked.timeout,
            verbose=asked.verbose,
        )
    except ValueError as error:
        parser.error(str(error))
    try:
        artifacts = build_engines(asked.bundle, asked.target, options, None if asked.json else _show)
    except RegionRTError as error:
        print(f"regionrt: {error}", file=sys.stderr)
        return 1
    if asked.json:
        print(json.dumps([artifact.to_json() for artifact in artifacts], indent=2))
    else:
        for artifact in artifacts:
            print(_line(artifact))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="regionrt build", description="Build engines from a bundle's ONNX files.")
    parser.add_argument("bundle", type=Path, help="the bundle's folder")
    parser.add_argument("--target", choices=list(TARGETS), default="tensorrt-rtx", help="default: %(default)s")
    parser.add_argument("--ops", choices=["native", "portable"], help="form to build from; default: the target's first")
    parser.add_argument(
        "--compute-capability",
        default="",
        metavar="8.6,8.9",
        help="GPUs to build for (tensorrt-rtx); default: 8.0 and all newer that it knows",
    )
    parser.add_argument("--optimization-level", type=int, metavar="0-5", help="default: the library's own")
    parser.add_argument("--workspace", type=int, metavar="MIB", help="memory for one layer; default: the library's own")
    parser.add_argument(
        "--timeout", type=float, default=DEFAULT_OPTIONS.timeout_s, metavar="S", help="default: %(default)g"
    )
    parser.add_argument("--verbose", action="store_true", help="TensorRT's messages on standard error")
    parser.add_argument("--json", action="store_true", help="print the new artefacts as JSON")
    return parser


def _show(phase: str, fraction: float) -> None:
    end = "\n" if fraction >= 1 else ""
    if sys.stderr.isatty():
        print(f"\r\033[K{fraction:4.0%} {phase}", end=end, file=sys.stderr, flush=True)


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
