"""Constants of a staged artefact: read, or refused in words where the file is no whole one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from regionrt.runtime.backends.staged_steps import read_constants
from regionrt.runtime.errors import BundleError

ANCHORS = np.arange(4000, dtype=np.float32).reshape(1000, 4)


def constants(path: Path) -> dict[str, np.ndarray]:
    manifest: Any = SimpleNamespace(path=lambda name: path)
    artifact: Any = SimpleNamespace(files=(path.name,))
    return read_constants(manifest, artifact)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.savez_compressed(tmp_path / "constants.npz", anchors=ANCHORS)
    return tmp_path / "constants.npz"


def test_they_are_read(path: Path) -> None:
    np.testing.assert_array_equal(constants(path)["anchors"], ANCHORS)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(BundleError, match="export the bundle again"):
        constants(path)


@pytest.mark.parametrize("place", [70, 400])
def test_a_changed_byte_is_refused(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(BundleError, match="export the bundle again"):
        constants(path)
