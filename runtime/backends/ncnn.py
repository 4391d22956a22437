"""ncnn on the CPU: the convolutions of the staged form by Winograd, everything else in ONNX Runtime."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regionrt.runtime.errors import BackendError, BundleError
from regionrt.runtime.machine import usable_cores
from regionrt.runtime.openmp import importing_with_short_spins

from .ncnn_stack import StackLayout, Stacks
from .onnxruntime import OnnxRuntimeStage, OnnxRuntimeStages

_FLOAT32 = bytes(4)  # the type that stands before a layer's weights in ncnn's files
_LAYERS = {
    "Input", "Split", "Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise", "Pooling",
    "Reduction", "BinaryOp", "Concat", "Interp", "Clip", "ReLU", "Sigmoid", "HardSigmoid", "HardSwish",
}  # fmt: skip


class NcnnStages:
    """Opens dense stages (`StageEngine`), in float32: those that were cut for ncnn, the others in ONNX Runtime.

    threads: for the arithmetic inside one layer; None takes one per usable physical core. Raises BackendError where a
    library is missing.
    """

    name = "ncnn"

    def __init__(self, threads: int | None = None) -> None:
        self._ncnn = _library()
        self.threads = threads or usable_cores()
        self._others = OnnxRuntimeStages(self.threads)

    def open(self, path: Path, stage: Mapping[str, Any]) -> NcnnStage | OnnxRuntimeStage:
        if path.suffix != ".json":
            return self._others.open(path, stage)
        cut = _Cut(path)
        before, after = self._around(cut, cut.before), self._around(cut, cut.after)
        return NcnnStage(self._ncnn, self._load(cut), cut, before, after, tuple(stage["outputs"]))

    def _around(self, cut: _Cut, piece: Mapping[str, Any] | None) -> _Piece | None:
        if piece is None:
            return None
        return _Piece(self._others.open(cut.path.parent / piece["file"], piece), tuple(piece["inputs"]))

    def _load(self, cut: _Cut) -> Any:
        ncnn = self._ncnn
        net = ncnn.Net()
        options = net.opt
        options.num_threads = self.threads
        options.use_vulkan_compute = False
        for name in dir(options):
            if name.startswith(("use_fp16", "use_bf16", "use_int8")):  # fp32 is fp32
                setattr(options, name, False)
        weights = _weights_of(ncnn, cut)
        if net.load_param_mem("\n".join(cut.layers) + "\n") or net.load_model(weights) or weights.left:
            raise BackendError(f"{cut.path}: ncnn {ncnn.__version__} refuses it; export the bundle again")
        return net


@dataclass(frozen=True)
class _Piece:
    """What is computed before or after the net; `inputs` are what it takes of the values that are there."""

    stage: OnnxRuntimeStage
    inputs: tuple[str, ...]

    def run(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.stage.run({name: values[name] for name in self.inputs})


@dataclass
class NcnnStage:
    """A dense stage in three pieces: a net of ncnn, and what is before and after it. All threads share it.

    ncnn: the library. outputs: names of what the stage gives, whichever piece it comes from.
    """

    ncnn: Any
    net: Any
    cut: _Cut
    before: _Piece | None
    after: _Piece | None
    outputs: tuple[str, ...]
    feature_type = np.dtype(np.float32)

    def session(self) -> NcnnSession:
        return NcnnSession(self)


class NcnnSession:
    """One worker's hold on a stage: the memory that its maps are made in, which stays: to give it back and have it
    cleared anew at every run is slow where maps are large. Outputs are new arrays at every run."""

    def __init__(self, stage: NcnnStage) -> None:
        self._stage = stage
        self._memory = stage.ncnn.PoolAllocator(), stage.ncnn.PoolAllocator()
        self._stacks = None if stage.cut.stack is None else Stacks(stage.cut.stack)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        stage = self._stage
        values = dict(feeds)
        if stage.before is not None:
            values |= stage.before.run(values)
        maps = {name: values[name] for name in stage.cut.inputs}
        values |= self._one_by_one(maps) if self._stacks is None else self._as_one(self._stacks, maps)
        if stage.after is not None:
            values |= stage.after.run(values)
        return {name: values[name] for name in stage.outputs}

    def _one_by_one(self, maps: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The net on maps float32 [N, C, H, W] by name, each image for itself."""
        blobs = self._stage.cut.inputs
        images = len(next(iter(maps.values())))
        values: dict[str, np.ndarray] = {}
        for image in range(images):
            found = self._net({blobs[name]: np.ascontiguousarray(each[image]) for name, each in maps.items()})
            for name, mat in found.items():
                if image == 0:
                    values[name] = np.empty((images, *mat.shape), np.float32)
                values[name][image] = mat
        return values

    def _as_one(self, stacks: Stacks, maps: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same, all of a batch in one run."""
        blobs = self._stage.cut.inputs
        first = next(iter(maps.values()))
        taken = {blobs[name]: stacks.tall(name, each) for name, each in maps.items()}
        found = self._net(taken | stacks.gaps(len(first), first.shape[3]))
        return {name: stacks.apart(mat, len(first)) for name, mat in found.items()}

    def _net(self, maps: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Maps float32 [C, H, W] by blob, which ncnn reads where they lie; what it makes of them by name."""
        stage = self._stage
        extractor = stage.net.create_extractor()
        blobs, workspace = self._memory
        extractor.set_blob_allocator(blobs)
        extractor.set_workspace_allocator(workspace)
        failed = [blob for blob, array in maps.items() if extractor.input(blob, stage.ncnn.Mat(array))]
        found = {}
        for name, blob in stage.cut.outputs.items():
            status, mat = extractor.extract(blob)
            found[name] = np.asarray(mat)
            failed += [name] if status else []
        if failed:
            shapes = [list(array.shape) for array in maps.values()]
            raise BackendError(f"ncnn: failed on maps of {shapes} at {failed[0]}; is there memory enough?")
        return found


class _Cut:
    """What a stage's file says. BundleError where it is not what an export writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            self.before: Mapping[str, Any] | None = data["before"]
            self.after: Mapping[str, Any] | None = data["after"]
            self.inputs: dict[str, str] = dict(data["inputs"])
            self.outputs: dict[str, str] = dict(data["outputs"])
            self.stack = StackLayout.of(data.get("stack"))
            self.layers = [str(line) for line in data["layers"]]
            self.pieces: list[Mapping[str, Any]] = list(data["weights"]["pieces"])
            self.weights_file: str = data["weights"]["file"]
            files = [self.weights_file, *(piece["file"] for piece in (self.before, self.after) if piece is not None)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{path}: expected a stage for ncnn, found {error!r}; export the bundle again") from error
        for file in files:
            if not isinstance(file, str) or Path(file).name != file:
                raise BundleError(f"{path}: expected the name of a file beside it, found {file!r}")
        unknown = {line.split()[0] for line in self.layers[2:] if line.split()} - _LAYERS
        if unknown:
            raise BundleError(f"{path}: expected layers that an export writes, found {', '.join(sorted(unknown))}")


def _weights_of(ncnn: Any, cut: _Cut) -> Any:
    """What ncnn reads a net's weights from, in the order of its layers: straight out of the bundle's file."""
    arrays = _arrays_of(cut)

    class Reader(ncnn.DataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._data = memoryview(b"")
            self.left = len(arrays)

        def read(self, place: Any, size: int) -> int:
            """Copy the next `size` bytes to `place`, a capsule of an address; how many there were."""
            address, copied = _address(place, None), 0
            while copied < size and (self._data or self.left):
                if not self._data:
                    tagged, array = arrays[-self.left]
                    self._data = memoryview((_FLOAT32 if tagged else b"") + array.tobytes())
                    self.left -= 1
                some = bytes(self._data[: size - copied])
                ctypes.memmove(address + copied, some, len(some))
                self._data = self._data[len(some) :]
                copied += len(some)
            return copied

    return Reader()


def _arrays_of(cut: _Cut) -> list[tuple[bool, np.ndarray]]:
    """Each weight in ncnn's order of its axes, and whether its type stands before it. BundleError where one is missing.

    Nothing is read yet, and nothing may fail later: ncnn knows no exceptions.
    """
    found = []
    try:
        inside = any("offset" in piece for piece in cut.pieces)
        file = np.memmap(cut.path.parent / cut.weights_file, np.uint8, "r") if inside else np.zeros(0, np.uint8)
        for piece in cut.pieces:
            shape = [int(side) for side in piece["shape"]]
            if "values" in piece:
                array = np.asarray(piece["values"], np.float32)
            else:
                start = int(piece["offset"])
                array = file[start : start + 4 * math.prod(shape)].view(np.float32)
            array = array.reshape(shape)
            if "axes" in piece:
                array = array.transpose([int(axis) for axis in piece["axes"]])
            found.append((bool(piece.get("tagged")), array))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{cut.path}: weights: {error}; export the bundle again") from error
    return found


def _library() -> Any:
    try:
        with importing_with_short_spins():
            import ncnn
    except ImportError as error:
        raise BackendError(f"ncnn cannot be imported ({error}): pip install 'regionrt[ncnn]'") from error
    return ncnn


_address = ctypes.pythonapi.PyCapsule_GetPointer
_address.restype, _address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
