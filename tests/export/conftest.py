"""Two tiny detectors, each exported once for all tests: exporting takes seconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from tiny_detectors import LABELS, faster, mask
from torchvision.models.detection import FasterRCNN

import regionrt.export.bundle as bundle_module
from regionrt.export import ExportOptions, export_bundle
from regionrt.export.to_onnx import onnx_from_module
from regionrt.runtime.image import Canvas

torch.set_num_threads(1)


@dataclass(frozen=True)
class Exported:
    """A module, the bundle made of it, and the abstract graph on the way. Tests leave all three as they are."""

    module: FasterRCNN
    options: ExportOptions
    bundle: Path
    abstract: ir.Model
    canvas: Canvas


def _export(module: FasterRCNN, options: ExportOptions, out: Path) -> Exported:
    seen: list[tuple[ir.Model, Canvas]] = []

    def keep(part: FasterRCNN, canvas: Canvas, **others) -> ir.Model:
        model = onnx_from_module(part, canvas, **others)
        seen.append((model.clone(), canvas))
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_module, "onnx_from_module", keep)
        export_bundle(module, out, options, labels=LABELS)
    ((abstract, canvas),) = seen
    return Exported(module, options, out, abstract, canvas)


@pytest.fixture(scope="session")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Faster R-CNN on one map, canvas of 64 × 96."""
    return _export(faster(), ExportOptions(size=(64, 96)), tmp_path_factory.mktemp("fixed") / "bundle")


@pytest.fixture(scope="session")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Mask R-CNN on a pyramid, canvases of any size up to 96 × 128."""
    options = ExportOptions(size=(96, 128), dynamic=True)
    return _export(mask(), options, tmp_path_factory.mktemp("dynamic") / "bundle")


@pytest.fixture(params=["fixed", "dynamic"])
def exported(request: pytest.FixtureRequest) -> Exported:
    """Either of the two."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def instant(fixed: Exported, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """From now on `export_bundle` takes the graph of `fixed` instead of tracing, for tests of what comes after.

    Called with a function, it lets that change the graph first.
    """

    def changed_by(change: Callable[[ir.Model], object] = lambda model: None, of: Exported = fixed) -> None:
        def onnx_at_once(*_, **__) -> ir.Model:
            model = of.abstract.clone()
            change(model)
            return model

        monkeypatch.setattr(bundle_module, "onnx_from_module", onnx_at_once)

    changed_by()
    return changed_by


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Exported], Path]:
    """A bundle to damage."""
    return lambda exported: Path(shutil.copytree(exported.bundle, tmp_path / "damaged"))
