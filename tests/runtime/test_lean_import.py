"""The runtime is lean: what a fresh interpreter loads with it, and how long that takes."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "openvino", "ncnn", "tensorrt", "tensorrt_rtx", "typer", "rich")
OURS = tuple(f"regionrt.{folder}" for folder in ("plugins", "train", "export", "bench", "cli"))


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import regionrt.runtime",
        "from regionrt.runtime import *",
        "import regionrt.runtime as rt; rt.load, rt.Predictor, rt.Manifest, rt.Detections, rt.read_image",
        "import regionrt.runtime.infer, regionrt.runtime.writing, regionrt.runtime.drawing, regionrt.runtime.clock",
        "import regionrt.runtime.backends.onnxruntime, regionrt.runtime.atomic",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    loaded = {module for module in modules_after(code) if module.startswith((*HEAVY, *OURS))}
    roots = {module for module in loaded if module.startswith(OURS) or module.split(".")[0] in HEAVY}
    assert roots == set()


def test_importing_the_package_loads_neither_numpy_nor_pillow() -> None:
    assert not {"numpy", "PIL"} & modules_after("import regionrt.runtime")


def test_every_public_name_is_there() -> None:
    import regionrt.runtime as rt

    for name in rt.__all__:
        assert getattr(rt, name) is not None
        assert name in dir(rt)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = rt.nonsense


def test_import_time() -> None:
    """Under 0.35 s; the best of three, because a first import also fills the disk cache."""
    times = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", "import regionrt.runtime"],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        match = re.search(r"\|\s+(\d+) \|\s+regionrt\.runtime$", done.stderr, re.MULTILINE)
        assert match is not None
        times.append(int(match[1]) * 1e-6)
    assert min(times) < 0.35
