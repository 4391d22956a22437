"""The TensorRT runner on a fake GPU: the net's results, whatever thread, shape, profile or library; and no leaks."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from fake_cuda import FakeDriver
from fake_detector import fake_model, photo_with
from fake_tensorrt import FakeTensorRT, write_plan

from regionrt.runtime.backends.cuda import CudaPython
from regionrt.runtime.backends.tensorrt import TensorRTRunner
from regionrt.runtime.errors import BackendError

HEIGHT, WIDTH = 96, 128
FLAVOURS = ["tensorrt-rtx", "tensorrt"]


def batches(least: int, usual: int, most: int) -> dict[str, dict[str, list[int]]]:
    sizes = {"min": least, "opt": usual, "max": most}
    return {
        "images": {name: [n, HEIGHT, WIDTH, 3] for name, n in sizes.items()},
        "image_sizes": {name: [n, 2] for name, n in sizes.items()},
    }


class Machine:
    """A fake GPU, a fake library, an engine file, and what the net answers without them."""

    def __init__(
        self, folder: Path, flavour: str = "tensorrt-rtx", profiles: Any = None, masks: bool = False, **plan: Any
    ):
        self.driver = FakeDriver()
        self.trt = FakeTensorRT(self.driver, flavour)
        self.model = fake_model(masks)
        self.path = folder / "a.engine"
        self.path.write_bytes(write_plan(self.model, profiles or [batches(1, 2, 4)], **plan))
        self.session = ort.InferenceSession(self.model.SerializeToString(), providers=["CPUExecutionProvider"])
        self.names = [node.name for node in self.session.get_outputs()]

    def runner(self, certificate: Any = None, **options: Any) -> TensorRTRunner:
        cuda = CudaPython(self.driver)
        return TensorRTRunner(self.path, self.trt.flavour, certificate, cuda=cuda, trt=self.trt, **options)

    def expected(self, images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        values = self.session.run(self.names, {"images": images, "image_sizes": sizes})
        return dict(zip(self.names, values, strict=True))

    def check(self, runner: TensorRTRunner, seed: int, count: int = 1) -> None:
        images, sizes = request(seed, count)
        found = runner.run(images, sizes)
        expected = self.expected(images, sizes)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
            assert found[name].dtype == value.dtype


def request(seed: int, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 60, 2)
    images = np.stack(
        [photo_with(HEIGHT, WIDTH, red=(x, y, x + 9 + i, y + 20), blue=(1, 2, 30, 40)) for i in range(count)]
    )
    return images, np.tile(np.array([[HEIGHT, WIDTH]], np.int32), (count, 1))


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_outputs_are_those_of_the_net(tmp_path: Path, flavour: str, masks: bool) -> None:
    machine = Machine(tmp_path, flavour, masks=masks)
    runner = machine.runner()
    for seed, count in enumerate([1, 1, 1, 3, 4, 1, 3, 3]):
        machine.check(runner, seed, count)
    assert runner.max_batch == 4
    assert "compute capability 8.6" in runner.about["device"]
    runner.close()


def test_results_are_not_overwritten_by_the_next_request(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    runner = machine.runner()
    first = runner.run(*request(0))
    kept = {name: value.copy() for name, value in first.items()}
    runner.run(*request(5))
    for name, value in kept.items():
        np.testing.assert_array_equal(first[name], value)


def test_buffers_are_allocated_once_for_each_profile(tmp_path: Path) -> None:
    machine = Machine(tmp_path, profiles=[batches(1, 1, 1), batches(2, 3, 4)])
    runner = machine.runner()
    machine.check(runner, 0, 1)
    machine.check(runner, 0, 3)
    before = dict(machine.driver.counts)
    for seed in range(6):
        machine.check(runner, seed, 1 + seed % 4)
    assert machine.driver.counts["cuMemAlloc"] == before["cuMemAlloc"] == 1 + 2 * 2  # a workspace, in and out of each
    assert machine.driver.counts["cuMemHostAlloc"] == before["cuMemHostAlloc"]
    assert {context.profile for context in machine.trt.contexts} == {0, 1}


def test_one_copy_each_way(tmp_path: Path) -> None:
    machine = Machine(tmp_path, masks=True)
    runner = machine.runner({"data_dependent_shapes": True})
    machine.check(runner, 0)
    before = dict(machine.driver.counts)
    machine.check(runner, 1)
    for name in ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuStreamSynchronize"):
        assert machine.driver.counts[name] - before.get(name, 0) == 1, name


def test_the_profile_nearest_to_the_request_is_taken(tmp_path: Path) -> None:
    machine = Machine(tmp_path, profiles=[batches(1, 4, 4), batches(1, 1, 2)])
    runner = machine.runner()
    machine.check(runner, 0, 1)
    machine.check(runner, 0, 4)
    assert [context.profile for context in machine.trt.contexts] == [1, 0]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_shape_that_comes_again_is_a_graph(tmp_path: Path, flavour: str) -> None:
    machine = Machine(tmp_path, flavour)
    runner = machine.runner()
    for seed in range(4):
        machine.check(runner, seed, 1)
        machine.check(runner, seed, 2)
    assert machine.driver.counts["cuStreamBeginCapture"] == 2  # one for each shape
    assert machine.driver.counts["cuGraphLaunch"] == 6  # all but the first run of each
    assert runner.why_no_graph is None
    runner.close()
    assert machine.driver.graphs == {}


def test_no_graph_where_shapes_depend_on_the_data(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    runner = machine.runner({"data_dependent_shapes": True})
    for seed in range(3):
        machine.check(runner, seed)
    assert "cuStreamBeginCapture" not in machine.driver.counts
    assert runner.why_no_graph == "its shapes depend on the data"


def test_an_engine_that_cannot_be_captured_runs_without(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.trt.fail_at = "capture"
    runner = machine.runner()
    for seed in range(4):
        machine.check(runner, seed)
    assert machine.driver.counts["cuStreamBeginCapture"] == 1
    assert "cuGraphLaunch" not in machine.driver.counts
    assert "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED" in str(runner.why_no_graph)


def test_kernels_that_are_yet_to_be_compiled_put_the_graph_off(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.trt.capturable = False
    runner = machine.runner()
    machine.check(runner, 0)
    machine.check(runner, 1)
    assert "cuStreamBeginCapture" not in machine.driver.counts
    machine.trt.capturable = True
    machine.check(runner, 2)
    assert machine.driver.counts["cuGraphLaunch"] == 1


def test_many_shapes_keep_few_contexts(tmp_path: Path) -> None:
    machine = Machine(tmp_path, profiles=[batches(1, 1, 12)])
    runner = machine.runner()
    for count in [*range(1, 13), *range(1, 13), 12, 12]:
        machine.check(runner, count, count)
    runner.close()
    assert machine.driver.memory == machine.driver.pinned == machine.driver.streams == machine.driver.graphs == {}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_threads_get_their_own_results(tmp_path: Path, flavour: str, workers: int) -> None:
    machine = Machine(tmp_path, flavour)
    runner = machine.runner(workers=workers)
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for seed in range(first, first + 8):
                machine.check(runner, seed, 1 + seed % 3)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(10 * i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert 1 <= machine.driver.counts["cuStreamCreate"] <= workers
    runner.close()
    assert machine.driver.memory == {}


def test_without_memory_for_another_worker_threads_wait(tmp_path: Path) -> None:
    machine = Machine(tmp_path, workspace=1 << 20)
    machine.driver.total = (1 << 20) + (1 << 19) + machine.path.stat().st_size
    runner = machine.runner(workers=8)
    threads = [threading.Thread(target=machine.check, args=(runner, seed)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert machine.driver.counts["cuStreamCreate"] == 1
    machine.check(runner, 1)


class OnGpu:
    """An array on the GPU, as CuPy and torch show one; or by DLPack alone."""

    def __init__(self, driver: FakeDriver, values: np.ndarray, stream: int | None = None, strides: Any = None) -> None:
        self.driver, self.values = driver, np.ascontiguousarray(values)
        self.shape, self.dtype = values.shape, values.dtype
        (_, self.address) = driver.cuMemAlloc(values.nbytes)
        ctypes.memmove(self.address, self.values.ctypes.data, values.nbytes)
        self.face = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "strides": strides,
            "stream": stream,
        }

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.face


@pytest.mark.parametrize("both", [True, False])
def test_an_array_on_the_gpu_is_not_copied(tmp_path: Path, both: bool) -> None:
    machine = Machine(tmp_path)
    runner = machine.runner({"data_dependent_shapes": True})  # and no graph
    machine.check(runner, 0)
    machine.check(runner, 1)
    images, sizes = request(7)
    before = dict(machine.driver.counts)
    found = runner.run(*there(machine.driver, images, sizes, both))
    for name, value in machine.expected(images, sizes).items():
        np.testing.assert_array_equal(found[name], value)
    assert machine.driver.counts["cuMemcpyHtoDAsync"] - before["cuMemcpyHtoDAsync"] == (0 if both else 1)
    assert "cuMemcpyDtoDAsync" not in machine.driver.counts
    machine.check(runner, 2)  # the context is back on its own buffers
    machine.check(runner, 3, 2)


def there(driver: FakeDriver, images: np.ndarray, sizes: np.ndarray, both: bool) -> tuple[Any, Any]:
    CudaPython(driver).make_current()
    return OnGpu(driver, images), OnGpu(driver, sizes) if both else sizes


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_graph_is_replayed_on_arrays_from_anywhere(tmp_path: Path, flavour: str, both: bool) -> None:
    """They are copied to where the graph reads; one graph serves them and the host's, in any order."""
    machine = Machine(tmp_path, flavour)
    runner = machine.runner(workers=1)
    for seed in range(6):
        images, sizes = request(seed)
        if seed == 4:
            machine.check(runner, seed)
            continue
        found = runner.run(*there(machine.driver, images, sizes, both))
        for name, value in machine.expected(images, sizes).items():
            np.testing.assert_array_equal(found[name], value, err_msg=f"{name} of request {seed}")
    assert machine.driver.counts["cuStreamBeginCapture"] == 1
    assert machine.driver.counts["cuGraphLaunch"] == runner.replayed == 5  # all but the first
    assert machine.driver.counts["cuMemcpyDtoDAsync"] == 4 * (2 if both else 1)
    assert runner.why_no_graph is None


def test_an_array_on_another_gpu_is_refused(tmp_path: Path) -> None:
    """By DLPack, which names the GPU, and by the interface, where the driver does."""
    machine = Machine(tmp_path)
    runner = machine.runner()
    images, sizes = request(7)
    on_gpu, _ = there(machine.driver, images, sizes, False)

    class ByDlpack:
        shape, dtype = images.shape, images.dtype

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 1

        def __dlpack__(self, stream: int) -> Any:
            raise AssertionError("of another GPU, whose streams are others")

    told = r"array on GPU 1: expected one on GPU 0 \(Fake GPU\).*\.to\('cuda:0'\).*CUDA_VISIBLE_DEVICES=1"
    with pytest.raises(BackendError, match=told):
        runner.run(ByDlpack(), sizes)
    machine.driver.elsewhere.add(on_gpu.address)
    with pytest.raises(BackendError, match=told):
        runner.run(on_gpu, sizes)
    machine.driver.elsewhere.clear()
    assert runner.run(on_gpu, sizes)["num_detections"].shape == (1,)


def test_the_stream_that_makes_an_array_is_waited_for(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    runner = machine.runner()
    images, sizes = request(7)
    cuda = CudaPython(machine.driver)
    stream = cuda.stream()
    late = OnGpu(machine.driver, np.zeros_like(images), stream)
    machine.driver.streams[stream].add(lambda: ctypes.memmove(late.address, images.ctypes.data, images.nbytes) and None)
    found = runner.run(late, sizes)
    np.testing.assert_array_equal(found["boxes"], machine.expected(images, sizes)["boxes"])


def test_an_array_on_the_gpu_with_gaps_is_refused(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    runner = machine.runner()
    images, sizes = request(7, 2)
    gaps = OnGpu(machine.driver, images, strides=(1, WIDTH * 2 * 3, 3, 1))
    with pytest.raises(BackendError, match=r"strides .*expected C order.*contiguous"):
        runner.run(gaps, sizes)
    alone = OnGpu(machine.driver, images[:1], strides=(5, WIDTH * 3, 3, 1))  # along an axis of one it says nothing
    assert runner.run(alone, sizes[:1])["num_detections"].shape == (1,)


@pytest.mark.parametrize("interface", [False, True])
def test_dlpack_is_read(tmp_path: Path, interface: bool) -> None:
    machine = Machine(tmp_path)
    runner = machine.runner()
    images, sizes = request(7)
    on_gpu = OnGpu(machine.driver, images)
    memory = np.ctypeslib.as_array((ctypes.c_uint8 * images.size).from_address(on_gpu.address)).reshape(images.shape)
    streams: list[int] = []

    class ByDlpack:
        shape, dtype = images.shape, images.dtype

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, stream: int) -> Any:
            streams.append(stream)
            return memory.__dlpack__()

    class ByBoth(ByDlpack):
        """As torch's tensors: their interface does not say on which stream they are made, so it must not be used."""

        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            return {**on_gpu.face, "version": 2, "data": (0, False)}

    found = runner.run(ByBoth() if interface else ByDlpack(), sizes)
    np.testing.assert_array_equal(found["boxes"], machine.expected(images, sizes)["boxes"])
    assert streams == list(machine.driver.streams)


@pytest.mark.parametrize(
    ("fail_at", "told"),
    [("execute", "Error Code 7: an execution that fails"), ("gpu", "CUDA_ERROR_ILLEGAL_ADDRESS")],
)
def test_a_failing_execution_is_an_error_and_the_next_one_runs(tmp_path: Path, fail_at: str, told: str) -> None:
    machine = Machine(tmp_path)
    runner = machine.runner(workers=1)
    machine.check(runner, 0)
    machine.trt.fail_at = fail_at
    with pytest.raises(BackendError, match=told) as caught:
        runner.run(*request(1, 2))
    assert "\n" not in str(caught.value)
    machine.trt.fail_at = None
    machine.check(runner, 2, 2)


def test_no_context_is_an_error(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    runner = machine.runner()
    machine.trt.fail_at = "context"
    with pytest.raises(BackendError, match="an execution context failed: no context today"):
        runner.run(*request(0))


def test_a_size_that_no_profile_takes(tmp_path: Path) -> None:
    runner = Machine(tmp_path).runner()
    with pytest.raises(
        BackendError, match=r"expected images \[1, 96, 128, 3\]…\[4, 96, 128, 3\].* found images \[5, 96"
    ):
        runner.run(*request(0, 5))


def test_another_type_of_input(tmp_path: Path) -> None:
    images, sizes = request(0)
    with pytest.raises(BackendError, match="images: expected uint8, found float32"):
        Machine(tmp_path).runner().run(images.astype(np.float32), sizes)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("data", [b"", b"no engine", b'{"magic": "fake engine"}\n'])
def test_a_broken_file_is_refused(tmp_path: Path, flavour: str, data: bytes) -> None:
    machine = Machine(tmp_path, flavour)
    machine.path.write_bytes(data)
    told = "malformed engine" if flavour == "tensorrt-rtx" else "magic tag does not match"
    with pytest.raises(BackendError, match=rf"Fake GPU .compute capability 8.6. refuses the engine: .*{told}"):
        machine.runner()


def test_host_code_must_be_allowed(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "tensorrt", host_code=True)
    with pytest.raises(BackendError, match=r"host code.*allow_host_code=True.*--exclude-lean-runtime"):
        machine.runner()
    machine.check(machine.runner(allow_host_code=True), 0)


@pytest.mark.parametrize("what", ["weights", "workspace", "inputs and outputs"])
def test_too_little_memory_is_said_in_mib(tmp_path: Path, what: str) -> None:
    machine = Machine(tmp_path, workspace=3 << 20)
    size = machine.path.stat().st_size
    machine.driver.total = {"weights": size - 1, "workspace": 2 << 20, "inputs and outputs": (3 << 20) + 1000}[what]
    with pytest.raises(BackendError, match=rf"{what} needs \d+ MiB of GPU memory, \d+ of \d+ MiB are free"):
        machine.runner().run(*request(0))


def test_a_closed_runner(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    runner = machine.runner()
    machine.check(runner, 0)
    runner.close()
    runner.close()
    assert machine.driver.memory == machine.driver.pinned == machine.driver.streams == {}
    with pytest.raises(BackendError, match="closed"):
        runner.run(*request(0))


def test_other_inputs_are_no_detector_of_ours(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> '
        "other (uint8[N,H,W,3] images) => (uint8[N,H,W,3] y) { y = Identity (images) }"
    )
    machine.path.write_bytes(write_plan(model, [{"images": batches(1, 1, 1)["images"]}]))
    with pytest.raises(BackendError, match=r"expected the inputs .* no detector of ours"):
        machine.runner()


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_are_checked(tmp_path: Path, workers: int) -> None:
    with pytest.raises(ValueError, match="workers: expected at least 1"):
        Machine(tmp_path).runner(workers=workers)
