"""Photos on the GPU, resized onto the canvas: the bytes that the CPU gives."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from regionrt.runtime.errors import BackendError, ImageError
from regionrt.runtime.gpu.arrays import GpuArray
from regionrt.runtime.gpu.placing import GpuPlacing
from regionrt.runtime.gpu.resize import resize_onto
from regionrt.runtime.image import Canvas


def photo(*size: int) -> np.ndarray:
    return np.random.default_rng(size[0]).integers(0, 256, (*size, 3), np.uint8)


def there(gpu, array: np.ndarray):
    """As a user has it on the GPU."""
    if gpu.large:
        return torch.from_numpy(array).cuda()
    interface = {"shape": array.shape, "typestr": array.dtype.str, "data": (gpu.put(array).address, False)}
    return SimpleNamespace(__cuda_array_interface__=interface)


def placing(gpu) -> GpuPlacing:
    return GpuPlacing(gpu.cuda, None if gpu.large else gpu.kernels)


def back(gpu, canvas) -> np.ndarray:
    if gpu.large:
        return torch.as_tensor(canvas, device="cuda").cpu().numpy()
    size = int(np.prod(canvas.shape))
    host = gpu.cuda.pinned(size)
    gpu.cuda.download(host, canvas.address, gpu.stream)
    gpu.cuda.synchronize(gpu.stream)
    return host.reshape(canvas.shape).copy()


@pytest.mark.parametrize("dynamic", [False, True])
def test_photos_of_several_sizes_lie_as_on_the_cpu(gpu, dynamic):
    scale = 6 if gpu.large else 1
    canvas = Canvas(128 * scale, 192 * scale, 96 * scale, 160 * scale, multiple=32, dynamic=dynamic)
    placed = placing(gpu)
    sizes = [(61, 84), (140, 90), (96, 128)]
    for few in (sizes, sizes[:1], sizes):
        photos = [photo(h * scale, w * scale) for h, w in few]
        expected, valid, placements = canvas.place(photos)
        found, sizes_found, placements_found = placed.place(canvas, [there(gpu, p) for p in photos])
        np.testing.assert_array_equal(back(gpu, found), expected)
        np.testing.assert_array_equal(sizes_found, valid)
        assert placements_found == placements
    del found
    placed.close()
    placed.close()
    with pytest.raises(BackendError, match="closed"):
        placed.place(canvas, [there(gpu, photos[0])])


def test_a_canvas_gives_its_memory_to_the_next_and_only_then(gpu):
    canvas, placed, given = Canvas(32, 32, 32, 32), placing(gpu), there(gpu, photo(20, 30))
    first, second = (placed.place(canvas, [given])[0] for _ in range(2))
    addresses = [c.address for c in (first, second)]
    assert addresses[0] != addresses[1]
    del first
    gc.collect()
    third, _, _ = placed.place(canvas, [given])
    assert third.address == addresses[0]
    placed.close()


def test_what_is_no_photo_is_refused_and_the_next_is_taken(gpu):
    canvas, placed = Canvas(32, 32, 32, 32), placing(gpu)
    for bad in (photo(20, 30).astype(np.float32), photo(20, 30)[:, :, 0].copy(), photo(20, 30)[:, :, [0, 1, 2, 0]]):
        with pytest.raises(ImageError, match=r"expected RGB uint8 \[H, W, 3\] on the GPU, found"):
            placed.place(canvas, [there(gpu, photo(9, 9)), there(gpu, np.ascontiguousarray(bad))])
    placed.place(canvas, [there(gpu, photo(9, 9))])
    placed.close()
    image, target = GpuArray(0, (9, 9, 3), "uint8"), GpuArray(0, (8, 8, 3), "uint8")
    with pytest.raises(BackendError, match="height on the canvas: the CUDA kernels take 1 to 8, found 9"):
        resize_onto(None, image, target, (9, 8))
