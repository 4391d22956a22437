"""`regionrt build`: engines from a bundle, on the device or ahead of time. Standard library only (argparse)."""

import argparse
import json
import sys
import traceback
from collections.abc import Sequence

from regionrt.runtime.build import TARGETS, BuildOptions, build_engines
from regionrt.runtime.errors import RegionRTError


def main(argv: Sequence[str]) -> int:
    """Exit code 0: built; 1: the build failed; 2: wrong use."""
    parser = argparse.ArgumentParser(
        prog="regionrt build", description="Build engines from a bundle's ONNX files and enter them in its manifest."
    )
    parser.add_argument("bundle", help="the folder that `regionrt export` wrote")
    parser.add_argument("--target", choices=sorted(TARGETS), default="tensorrt-rtx")
    parser.add_argument("--ops", choices=("native", "portable"), help="form to build from; default: the target's first")
    parser.add_argument(
        "--compute-capability",
        default="",
        metavar="8.6,8.9",
        help="GPUs to build for (tensorrt-rtx); default: 8.0 and newer",
    )
    parser.add_argument("--optimization-level", type=int, metavar="0-5", help="0 builds fast, 5 runs fast")
    parser.add_argument("--workspace-mib", type=int, metavar="N", help="most memory of a layer while it runs")
    parser.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS", help="for each engine")
    parser.add_argument("--json", action="store_true", help="print the new manifest entries as JSON")
    parser.add_argument("--verbose", action="store_true", help="show TensorRT's messages")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    try:
        given = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    try:
        options = BuildOptions(
            ops=given.ops,
            compute_capability=tuple(c.strip() for c in given.compute_capability.split(",") if c.strip()),
            optimization_level=given.optimization_level,
            workspace_mib=given.workspace_mib,
            timeout_s=given.timeout,
            verbose=given.verbose,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        built = build_engines(given.bundle, given.target, options, _tell)
    except RegionRTError as error:
        if given.debug:
            traceback.print_exc()
        print(f"\nerror: {error}" if sys.stderr.isatty() else f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the bundle is as it was", file=sys.stderr)
        return 130
    if given.json:
        print(json.dumps([artifact.to_json() for artifact in built], indent=2))
        return 0
    for artifact in built:
        facts = dict(artifact.engine or {})
        layers = facts.get("layer_types", {})
        kinds = "; ".join(
            f"{kind}: " + ", ".join(f"{number} {dtype}" for dtype, number in sorted(layers.get(kind, {}).items()))
            for kind in ("conv", "matmul")
            if layers.get(kind)
        )
        print(
            f"{given.bundle}/{artifact.files[0]}: {artifact.backend} {artifact.form} {artifact.precision}, "
            f"{facts.get('engine_bytes', 0) / 1e6:.0f} MB, {facts.get('build_seconds', 0):.1f} s; compiled layers: {kinds}"
        )
    return 0


def _tell(text: str, done: float) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{done:4.0%} {text}", end="\n" if done >= 1 else "", file=sys.stderr, flush=True)
