"""Photos that lie on the GPU, resized onto a canvas there: what `Canvas.place` does with photos of the host."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from regionrt.runtime.backends.cuda import Cuda
from regionrt.runtime.backends.device_arrays import DeviceArray, device_array
from regionrt.runtime.errors import BackendError, ImageError
from regionrt.runtime.image import Canvas, Placement

from .arrays import GpuArray
from .kernels import Kernels
from .resize import resize_onto

_KEPT = 4  # canvases whose memory waits for the next request


class CanvasOnGpu:
    """uint8 [N, H, W, 3] on the GPU, for a runner's `images`. Its memory serves the next request when this is gone."""

    dtype = np.dtype(np.uint8)

    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        self.shape, self.address = shape, address
        self.__cuda_array_interface__ = {"shape": shape, "typestr": "|u1", "data": (address, False), "version": 3}


class GpuPlacing:
    """Resizes on one GPU. Safe for several threads: one at a time."""

    def __init__(self, cuda: Cuda, kernels: Kernels | None = None) -> None:
        self._cuda = cuda
        cuda.make_current()
        self._kernels = kernels or Kernels(cuda)
        self._kernels.function("resize", "resize")  # what cannot be compiled says so now
        self._stream = cuda.stream()
        self._idle: deque[tuple[int, int]] = deque()  # (bytes, address); what a finaliser appends to takes no lock
        self._lock = threading.Lock()
        self._closed = False

    def place(self, canvas: Canvas, images: Sequence[Any]) -> tuple[CanvasOnGpu, np.ndarray, list[Placement]]:
        """RGB uint8 [h, w, 3] photos on the GPU (`__cuda_array_interface__` or DLPack), each read where it is.

        Returns as `Canvas.place`, with the canvas on the GPU. Raises ImageError (a photo) or BackendError (the GPU).
        """
        with self._lock:
            if self._closed:
                raise BackendError("this predictor is closed; load the bundle again")
            self._cuda.make_current()
            held: list[DeviceArray] = []
            try:
                for image in images:
                    held.append(device_array(image, self._stream, self._cuda))
                    _check_rgb(held[-1])
                photo_sizes = [(array.shape[0], array.shape[1]) for array in held]
                placements = [Placement(size, canvas.resized_size(*size)) for size in photo_sizes]
                sizes = [placement.resized for placement in placements]
                shape = (len(images), *canvas.size_for(sizes), 3)
                placed = self._canvas(shape)
                step = int(np.prod(shape[1:]))
                for index, (array, size) in enumerate(zip(held, sizes, strict=True)):
                    target = GpuArray(placed.address + index * step, shape[1:], "uint8")
                    source = GpuArray(array.address, array.shape, "uint8")
                    for launch in resize_onto(self._kernels, source, target, size):
                        launch.enqueue(self._stream)
            finally:
                self._cuda.synchronize(self._stream)  # the photos are the caller's again
                for array in held:
                    array.release()
        return placed, np.array(sizes, np.int32).reshape(-1, 2), placements

    def _canvas(self, shape: tuple[int, ...]) -> CanvasOnGpu:
        size = int(np.prod(shape))
        address = None
        for _ in range(len(self._idle)):
            kept = self._idle.popleft()
            if kept[0] == size and address is None:
                address = kept[1]
            elif len(self._idle) >= _KEPT:
                self._cuda.free(kept[1])
            else:
                self._idle.append(kept)
        made = CanvasOnGpu(self._cuda.allocate(size) if address is None else address, shape)
        weakref.finalize(made, self._idle.append, (size, made.address)).atexit = False
        return made

    def close(self) -> None:
        """Frees what is not in use; may be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._cuda.make_current()
            while self._idle:
                self._cuda.free(self._idle.popleft()[1])
            self._cuda.free_stream(self._stream)
            self._kernels.close()


def _check_rgb(array: DeviceArray) -> None:
    if array.dtype != np.uint8 or len(array.shape) != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(f"expected RGB uint8 [H, W, 3] on the GPU, found {array.dtype} {list(array.shape)}")
