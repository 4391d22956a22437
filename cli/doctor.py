"""`regionrt doctor`: what is installed, what can run here, and how to get what is missing. Standard library only."""

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec

from regionrt import __version__
from regionrt.runtime import native
from regionrt.runtime.devices import BackendInfo, backends
from regionrt.runtime.machine import describe_machine

EXTRAS = {  # extra: the modules it brings, what for
    "train": (("torch", "torchvision", "lightning", "pycocotools", "skimage", "sklearn"), "train, eval"),
    "export": (("torch", "torchvision", "onnx", "onnx_ir", "onnxscript", "onnxruntime"), "compress, export, verify"),
    "bench": (("torch", "torchvision", "jinja2"), "bench, deploy"),
    "cli": (("typer", "rich"), "every verb but infer, build and doctor"),
}


def main(argv: Sequence[str]) -> int:
    """Exit code 0 if some backend can run a bundle here, else 1; 2 is wrong use."""
    parser = argparse.ArgumentParser(prog="regionrt doctor", description="What can run here, and how to get the rest.")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    try:
        given = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    found = backends()
    machine = describe_machine()
    missing = {extra: [m for m in modules if find_spec(m) is None] for extra, (modules, _) in EXTRAS.items()}
    runs = [info.name for info in found if info.usable and info.name != "torch"]
    ops = native.about()
    if given.json:
        print(
            json.dumps(
                {
                    "regionrt": __version__,
                    "python": platform.python_version(),
                    "machine": machine,
                    "backends": [asdict(info) for info in found],
                    "missing": missing,
                    "native_ops": asdict(ops),
                    "runs_bundles": bool(runs),
                },
                indent=2,
            )
        )
        return 0 if runs else 1
    print(f"regionrt {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    print(f"{machine['processor']}, {machine['usable_cores']} cores\n")
    print("backends")
    for info in found:
        _print_backend(info)
    why = "" if ops.why_not_better is None else f": {ops.why_not_better}"
    print(f"\nops between the stages of a net\n  {ops.variant}{why}")
    print("\nverbs")
    for extra, (_, verbs) in EXTRAS.items():
        gone = missing[extra]
        state = "ready" if not gone else f'missing {", ".join(gone)}: pip install "regionrt[{extra}]"'
        print(f"  {verbs:42} {state}")
    if not runs:
        print('\nno backend here can run a bundle yet: pip install "regionrt[ort]"')
    return 0 if runs else 1


def _print_backend(info: BackendInfo) -> None:
    version = (info.version or "—").split("-")[0]
    devices = ", ".join(info.devices) or "no device"
    state = f"ready: {devices}" if info.usable else info.why_not
    print(f"  {info.name:14} {version:16} {state}")
    if not info.usable and info.version is None:
        print(f"  {'':14} {'':16} get it: {info.get}")
    elif not info.usable and info.builds:
        print(f"  {'':14} {'':16} engines can be built here, ahead of time")
