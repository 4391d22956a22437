"""What is said of an engine that does not fit this machine, and that the command which rebuilds it stands beside."""

from __future__ import annotations

import hashlib
import platform
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_cuda import FakeDriver
from fake_detector import fake_artifact, fake_manifest, fake_model, photo_with, write_manifest
from fake_tensorrt import FakeTensorRT, write_plan

import regionrt.runtime as rt
from regionrt.runtime import preflight
from regionrt.runtime.backends import cuda as cuda_module

VERSIONS = {"tensorrt-rtx": "1.7.1.116", "tensorrt": "10.3.0"}
ORT = fake_artifact("onnxruntime", "native", ["native.onnx", "weights.bin"])


class Device:
    """A machine with a fake GPU, and a bundle whose first artefact is an engine for it."""

    def __init__(self, bundle: Path, monkeypatch: pytest.MonkeyPatch, flavour: str = "tensorrt-rtx") -> None:
        self.bundle, self.flavour = bundle, flavour
        self.driver = FakeDriver((8, 6))
        module = flavour.replace("-", "_")
        self.installed = {module, "cuda", "onnxruntime"}
        self.library = FakeTensorRT(self.driver, flavour, VERSIONS[flavour])
        monkeypatch.setitem(sys.modules, module, self.library)
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", self.driver)
        for where in (preflight, cuda_module):
            monkeypatch.setattr(where, "why_no_driver", lambda: None)
        monkeypatch.setattr(preflight, "find_spec", lambda name: name if name in self.installed else None)
        monkeypatch.setattr(
            preflight.importlib.metadata, "version", lambda name: {module: self.library.__version__}.get(name, "0")
        )
        self.certificate: dict[str, Any] = {
            "flavour": flavour,
            "version": VERSIONS[flavour],
            "compute_capabilities": ["8.6", "8.9"],
            "os": platform.system(),
            "machine": platform.machine(),
            "precision": "fp32",
            "built_from": {"native.onnx": hashlib.sha256((bundle / "native.onnx").read_bytes()).hexdigest()},
            "options": ["--compute-capability", "8.6,8.9", "--optimization-level", "4"],
        }
        self.plan: dict[str, Any] = {}
        self.write()

    @property
    def engine(self) -> Path:
        return self.bundle / "engines" / "a.engine"

    def write(self, data: bytes | None = None, **certificate: Any) -> None:
        """The engine file and a manifest that agrees, with changes to the certificate."""
        self.certificate |= certificate
        sizes = {name: [1, 96, 128, 3] for name in ("min", "opt", "max")}
        profile = {"images": sizes, "image_sizes": {name: [1, 2] for name in sizes}}
        self.engine.parent.mkdir(exist_ok=True)
        self.engine.write_bytes(data if data is not None else write_plan(fake_model(), [profile], **self.plan))
        artifact = fake_artifact(self.flavour, "portable", ["engines/a.engine"], engine=self.certificate)
        write_manifest(self.bundle, fake_manifest(self.bundle, artifacts=[artifact, ORT]))

    def refused(self, *told: str, **options: Any) -> str:
        """Asked for by name it is an error with every text in it; with "auto" the next artefact runs."""
        with pytest.raises(rt.BackendError) as caught:
            rt.load(self.bundle, self.flavour, **options)
        message = str(caught.value)
        for text in told:
            assert text in message
        assert "\n" not in message
        return message

    def falls_back(self) -> None:
        with rt.load(self.bundle) as predict:
            assert predict.about["backend"] == "onnxruntime"
            assert predict.about["skipped"][0]["why"]


@pytest.fixture(params=list(VERSIONS))
def device(request: pytest.FixtureRequest, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(bundle, monkeypatch, request.param)


@pytest.fixture
def rtx(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(bundle, monkeypatch)


@pytest.fixture
def full(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(bundle, monkeypatch, "tensorrt")


def test_an_engine_that_fits_runs(device: Device) -> None:
    with rt.load(device.bundle) as predict:
        assert predict.about["backend"] == device.flavour
        assert predict.about["device"] == "Fake GPU (compute capability 8.6)"
        assert predict.max_batch == 1
        found = predict.batch([photo_with(96, 128, red=(3, 5, 60, 70))] * 3)
    with rt.load(device.bundle, "onnxruntime") as predict:
        (expected,) = predict.batch([photo_with(96, 128, red=(3, 5, 60, 70))])
    assert [each.boxes_xyxy.tolist() for each in found] == [expected.boxes_xyxy.tolist()] * 3


def test_an_engine_of_another_version(device: Device) -> None:
    device.write(version="9.9.9")
    device.refused(
        f"built with version 9.9.9, this is {VERSIONS[device.flavour]}",
        f"build it again: regionrt build {device.bundle} --target {device.flavour} --ops portable "
        "--compute-capability 8.6,8.9 --optimization-level 4",
    )
    device.falls_back()


def test_the_version_is_asked_of_the_library_where_metadata_is_missing(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise preflight.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(preflight.importlib.metadata, "version", missing)
    device.write(version="9.9.9")
    device.refused("built with version 9.9.9", "build it again: regionrt build")
    with pytest.warns(UserWarning, match=r"left out: built with version 9\.9\.9"):
        device.falls_back()


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [
        ("10.0.1", "10.3.0", True),
        ("10.3.0", "10.3.0", True),
        ("10.9.0", "10.3.0", False),
        ("8.6.1", "10.3.0", False),
        ("10.9.0", "11.4.1", True),
        ("11.1.0", "10.16.0", False),
        ("11.2.0", "11.1.0", False),
    ],
)
def test_a_version_compatible_engine(full: Device, built: str, here: str, fits: bool) -> None:
    full.library.__version__ = here
    full.write(version=built, version_compatible=True)
    if fits:
        rt.load(full.bundle, "tensorrt").close()
    else:
        full.refused(f"from {built} on", f"this is {here}", "build it again")


def test_the_lean_runtime_takes_version_compatible_engines_only(full: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    full.installed = {"tensorrt_lean", "cuda", "onnxruntime"}
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    lean = FakeTensorRT(full.driver, "tensorrt", "10.3.0")
    lean.__name__ = "tensorrt_lean"
    monkeypatch.setitem(sys.modules, "tensorrt_lean", lean)
    monkeypatch.setattr(preflight.importlib.metadata, "version", lambda name: "10.3.0")
    full.refused("tensorrt_lean executes version-compatible engines only", "--version-compatible")
    full.write(version_compatible=True)
    with rt.load(full.bundle, "tensorrt") as predict:
        assert predict.about["library"] == "tensorrt_lean 10.3.0"


def test_an_engine_for_another_gpu(rtx: Device) -> None:
    rtx.driver.capability = (12, 0)
    message = rtx.refused(
        "built for compute capability 8.6, 8.9, this is Fake GPU with 12.0",
        "--ops portable --optimization-level 4 --compute-capability 12.0",
    )
    assert "8.6,8.9" not in message
    with pytest.warns(UserWarning, match="left out: built for compute capability"):
        rtx.falls_back()


@pytest.mark.parametrize(("here", "fits"), [((8, 7), True), ((12, 0), True), ((7, 5), False)])
def test_a_hardware_compatible_engine(full: Device, here: tuple[int, int], fits: bool) -> None:
    full.driver.capability = here
    full.refused("built for compute capability 8.6, 8.9")
    full.write(hardware_compatibility="ampere_plus")
    if fits:
        rt.load(full.bundle, "tensorrt").close()
    else:
        full.refused("this is Fake GPU with 7.5")


@pytest.mark.parametrize(("field", "value"), [("os", "Windows"), ("machine", "aarch64x")])
def test_an_engine_of_another_system(device: Device, field: str, value: str) -> None:
    device.write(**{field: value})
    device.refused(f"built on {value}, this is ", "build it again: regionrt build")
    device.falls_back()


def test_everything_that_differs_is_said_at_once(rtx: Device) -> None:
    rtx.write(version="9.9.9", os="Windows", precision="fp16")
    rtx.refused("version 9.9.9", "built on Windows", "the engine is fp16, the manifest lists it as fp32")


def test_an_engine_built_from_another_export(device: Device) -> None:
    device.write(built_from={"native.onnx": "0" * 64, "gone.bin": "1" * 64})
    device.refused("built from another native.onnx (000000000000…) than the bundle holds", "build it again")


def test_an_engine_of_another_flavour(rtx: Device) -> None:
    rtx.write(flavour="tensorrt")
    rtx.refused("the engine is for tensorrt, the manifest lists it for tensorrt-rtx")


def test_a_truncated_engine(device: Device) -> None:
    device.engine.write_bytes(device.engine.read_bytes()[:-7])
    device.refused("engines/a.engine is cut short or changed: expected", "build it again: regionrt build")
    device.falls_back()


def test_a_missing_engine(device: Device) -> None:
    device.engine.unlink()
    device.refused("engines/a.engine is missing from the bundle", "build it again: regionrt build")
    device.falls_back()


def test_a_flipped_engine(device: Device) -> None:
    data = bytearray(device.engine.read_bytes())
    data[len(data) // 2] ^= 4
    device.engine.write_bytes(data)
    device.refused("a.engine: changed since the export", "build it again: regionrt build")
    with pytest.warns(UserWarning, match="left out: .*changed since the export"):
        device.falls_back()


def test_an_engine_that_the_library_refuses(device: Device) -> None:
    device.write(b"a file of the right size and hash, and no engine")
    device.refused("refuses the engine", "if it does not fit this machine, build it again: regionrt build")


def test_host_code_must_be_allowed(full: Device) -> None:
    full.plan = {"host_code": True}
    full.write(host_code=True)
    full.refused("it brings code for the host", "allow_host_code=True", "--exclude-lean-runtime")
    full.falls_back()
    rt.load(full.bundle, "tensorrt", allow_host_code=True).close()


def test_host_code_that_the_certificate_does_not_mention(full: Device) -> None:
    full.plan = {"host_code": True}
    full.write()
    full.refused("host code", "allow_host_code=True")


def test_too_little_memory(device: Device) -> None:
    device.plan = {"workspace": 64 << 20}
    device.write()
    device.driver.total = 32 << 20
    device.refused("its workspace needs 64 MiB of GPU memory, 32 of 32 MiB are free")


def test_without_cuda_python(device: Device) -> None:
    device.installed.discard("cuda")
    device.refused("neither cuda-python nor pycuda is installed (pip install cuda-python)")


def test_without_the_library(device: Device) -> None:
    device.installed.discard(device.flavour.replace("-", "_"))
    device.refused("is not installed (pip install 'regionrt[")


def test_a_bundle_with_a_truncated_engine_can_be_built_again(rtx: Device) -> None:
    rtx.engine.write_bytes(b"")
    manifest = rt.Manifest.read(rtx.bundle)
    with pytest.raises(rt.BundleError, match=r"a\.engine: cut short"):
        manifest.verify_files()


def test_a_folder_with_a_blank_is_quoted(rtx: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = rtx.bundle.parent / "my bundle"
    rtx.bundle.rename(moved)
    rtx.bundle = moved
    rtx.write(version="9.9.9")
    rtx.refused(f"regionrt build '{moved}' --target tensorrt-rtx")
