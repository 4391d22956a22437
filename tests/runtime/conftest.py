"""Bundles for the tests of the runtime."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_detector import write_fake_bundle

from regionrt.runtime import preflight


@pytest.fixture(scope="session")
def shared_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detection bundle that no test may change."""
    return write_fake_bundle(tmp_path_factory.mktemp("shared") / "bundle")


@pytest.fixture(scope="session")
def mask_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An instance-segmentation bundle that no test may change."""
    return write_fake_bundle(tmp_path_factory.mktemp("shared") / "masks", masks=True)


@pytest.fixture
def bundle(shared_bundle: Path, tmp_path: Path) -> Path:
    """A detection bundle for a test to damage."""
    return Path(shutil.copytree(shared_bundle, tmp_path / "bundle"))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without an NVIDIA driver, also where there is one."""
    monkeypatch.setattr(preflight, "why_no_driver", lambda: "no NVIDIA GPU driver (libcuda.so.1) on this machine")
