"""The Predictor: photos in, Detections out, whatever backend runs the net."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .backends import Runner
from .errors import BackendError, BundleError, ImageError, ProposalError
from .image import Canvas, Placement, check_rgb, read_image
from .proposals import Boxes, ProposalInput
from .results import Detections

if TYPE_CHECKING:
    from .gpu.placing import GpuPlacing

Photo = np.ndarray | str | Path
"""Or what lies on the GPU (`__cuda_array_interface__` or DLPack), where the bundle was loaded with `resize_on_gpu`."""
_Ran = tuple[np.ndarray, "Prepared", dict[str, np.ndarray]]
OUTPUTS = ("num_detections", "boxes", "scores", "labels", "overflow")
_AHEAD = 3  # photos decoded before their turn: hides the decoder behind the net, bounds the memory


@dataclass(frozen=True)
class Prepared:
    """A batch on its canvas: `images` uint8 [N, H, W, 3], `image_sizes` int32 [N, 2], and the way back.

    proposals: what nets that take them are given beside: `proposals` [N, P, 4], `proposal_counts` [N].
    """

    images: Any  # an array, or a canvas on the GPU
    image_sizes: np.ndarray
    placements: list[Placement]
    proposals: dict[str, np.ndarray] = field(default_factory=dict)


class Predictor:
    """Preprocess → backend → postprocess. Safe to call from several threads at once; a context manager.

    Args:
        runner: what executes the net.
        canvas: the input it was built for.
        labels: names by label index, `labels[0]` the background.
        thresholds: what the net was built with; "score" where it has scores.
        score_threshold: raises the score threshold; None keeps the net's own.
        max_batch: most photos that go through the net at once (`batch` cuts longer lists).
        about: what is known about the artefact, shown as `about`.
        gpu: resizes photos that lie on the GPU; None: they are refused.
        proposals: how many the net takes, and what finds them in photos that come without; None: it finds its own.
    """

    def __init__(
        self,
        runner: Runner,
        canvas: Canvas,
        labels: Sequence[str],
        thresholds: Mapping[str, float],
        *,
        score_threshold: float | None = None,
        max_batch: int = 4,
        about: Mapping[str, Any] | None = None,
        gpu: GpuPlacing | None = None,
        proposals: ProposalInput | None = None,
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch: expected at least 1, got {max_batch}")
        built = thresholds.get("score", 0.0)  # label maps have no threshold
        check_score(score_threshold, built)
        self.runner = runner
        self.canvas = canvas
        self.labels = tuple(labels)
        self.thresholds = dict(thresholds)
        self.score_threshold = built if score_threshold is None else score_threshold
        self.max_batch = max_batch
        self._gpu = gpu
        self.proposals = proposals
        self.about: dict[str, Any] = {"backend": runner.name, **(about or {})}

    def __call__(self, image: Photo, proposals: Boxes | None = None) -> Detections:
        """What is in one photo: an RGB uint8 array [H, W, 3], or the path of an image file.

        Loaded with `resize_on_gpu`, also an array on the GPU, which is read where it is.
        proposals: for nets that take them (`predict.proposals`), boxes [M, 4], xyxy in pixels of the photo, the best
        first; None: selective search finds them, by OpenCV.

        Raises ImageError (the photo, or its proposals: ProposalError) or BackendError (the engine, no OpenCV).
        """
        return self.batch([image], None if proposals is None else [proposals])[0]

    def batch(self, images: Iterable[Photo], proposals: Iterable[Boxes | None] | None = None) -> list[Detections]:
        """The same for many, of any sizes, in their order; at most `max_batch` at once on the net.

        proposals: boxes for each photo; None for one: they are searched for.
        """
        found: list[Detections] = []
        waiting: list[tuple[Any, Boxes | None]] = []
        for image, boxes in _pairs(images, proposals):
            photo = image if self._on_gpu(image) else as_rgb(image)
            if waiting and (len(waiting) == self.max_batch or self._on_gpu(waiting[0][0]) != self._on_gpu(photo)):
                found += self._through(waiting)
                waiting = []
            waiting.append((photo, boxes))
        return found + (self._through(waiting) if waiting else [])

    def stream(
        self,
        paths: Iterable[str | Path],
        on_error: Callable[[str, ImageError], None] | None = None,
        proposals: Iterable[Boxes | None] | None = None,
    ) -> Iterator[tuple[str, Detections]]:
        """(name, Detections) for each image file, in order.

        Decoding and resizing, the net, and what the caller does with the detections go on at the same time, each with
        another image; at most a few images are on their way.

        A file that cannot be read raises ImageError, or with `on_error` is told to it as (name, error) and left out; so
        are proposals (as of `batch`) that do not fit.
        """
        for name, _, found in self.stream_images(paths, on_error, proposals):
            yield name, found

    def stream_images(
        self,
        paths: Iterable[str | Path],
        on_error: Callable[[str, ImageError], None] | None = None,
        proposals: Iterable[Boxes | None] | None = None,
    ) -> Iterator[tuple[str, np.ndarray, Detections]]:
        """`stream` with the decoded photo (RGB uint8 [H, W, 3]) as well, for who draws on it."""
        queue: deque[tuple[str, Future[_Ran]]] = deque()
        source = iter(_pairs(paths, proposals))
        with (
            ThreadPoolExecutor(1, thread_name_prefix="regionrt-net") as net,
            ThreadPoolExecutor(1, thread_name_prefix="regionrt-decode") as decoder,
        ):
            try:
                while True:
                    while len(queue) < _AHEAD and (pair := next(source, None)) is not None:
                        decoded = decoder.submit(self._decode, *pair)
                        queue.append((str(pair[0]), net.submit(self._run_decoded, decoded)))
                    if not queue:
                        return
                    name, future = queue.popleft()
                    try:
                        image, prepared, outputs = future.result()
                    except ImageError as error:
                        if on_error is None:
                            raise
                        on_error(name, error)
                        continue
                    except BackendError as error:
                        raise BackendError(f"{name}: {error}") from error
                    yield name, image, self.finish(prepared, outputs)[0]
            finally:
                for _, future in queue:
                    future.cancel()

    def _decode(self, path: str | Path, proposals: Boxes | None) -> tuple[np.ndarray, Prepared]:
        image = read_image(path)
        return image, self.prepare([image], None if proposals is None else [proposals])

    def _run_decoded(self, decoded: Future[tuple[np.ndarray, Prepared]]) -> _Ran:
        image, prepared = decoded.result()
        return image, prepared, self.execute(prepared)

    def _on_gpu(self, image: Any) -> bool:
        """Whether a photo stays on the GPU. ImageError where it is there and cannot."""
        if isinstance(image, (np.ndarray, str, Path)):
            return False
        from .backends.device_arrays import on_device

        if not on_device(image):
            return False
        if self._gpu is None:
            raise ImageError(
                "a photo on the GPU: load(…, resize_on_gpu=True) takes it where it is; or copy it to NumPy"
            )
        return True

    def _through(self, pairs: Sequence[tuple[Any, Boxes | None]]) -> list[Detections]:
        images, proposals = zip(*pairs, strict=True)
        prepared = self.prepare(images, None if all(boxes is None for boxes in proposals) else proposals)
        return self.finish(prepared, self.execute(prepared))

    def prepare(self, images: Sequence[Any], proposals: Sequence[Boxes | None] | None = None) -> Prepared:
        """First step: RGB uint8 arrays onto the canvas; all in the host's memory, or all on the GPU."""
        if self.proposals is None and proposals is not None:
            raise ProposalError("this net finds its proposals itself: leave proposals= out")
        on_gpu = self._gpu is not None and len(images) and self._on_gpu(images[0])
        canvas, sizes, placements = (
            self._gpu.place(self.canvas, images) if on_gpu else self.canvas.place(images)  # type: ignore[union-attr]
        )
        taken = {} if self.proposals is None else self.proposals.place(images, proposals, placements)
        return Prepared(canvas, sizes, placements, taken)

    def execute(self, prepared: Prepared) -> dict[str, np.ndarray]:
        """Second step: the net. Outputs by name as `Runner` describes them."""
        return self.runner.run(prepared.images, prepared.image_sizes, **prepared.proposals)

    def finish(self, prepared: Prepared, outputs: Mapping[str, np.ndarray]) -> list[Detections]:
        """Third step: counts, thresholds, and boxes back in pixels of the photos. Warns of dropped candidates."""
        self._check(outputs, len(prepared.placements))
        dropped = int(outputs["overflow"].sum())
        if dropped:
            merges = "merge" in self.thresholds
            what = "windows above window_score" if merges else "candidate boxes above the score threshold"
            higher = "--window-score or more --candidates" if merges else "--score"
            warnings.warn(
                f"{dropped} {what} were dropped by the cap of {self.thresholds.get('candidates', 'the net')}: objects "
                f"may be missing; export with a higher {higher}",
                stacklevel=3,
            )
        return [self._of(index, placement, outputs) for index, placement in enumerate(prepared.placements)]

    def _of(self, index: int, placement: Placement, outputs: Mapping[str, np.ndarray]) -> Detections:
        count = int(outputs["num_detections"][index])
        boxes, scores, labels = (outputs[name][index, :count] for name in ("boxes", "scores", "labels"))
        masks = outputs["masks"][index, :count] if "masks" in outputs else None
        if not all(np.isfinite(values).all() for values in (boxes, scores, () if masks is None else masks)):
            raise BackendError(f"{self.runner.name}: a box, score or mask is not finite: the artefact is broken")
        if count and not (labels.min() >= 1 and labels.max() < len(self.labels)):
            raise BackendError(
                f"{self.runner.name}: labels {labels.min()}…{labels.max()}, expected 1…{len(self.labels) - 1}: "
                "the artefact does not belong to these labels"
            )
        # Copies: the outputs may be a view of a buffer of all N × D rows, which would live as long as the results.
        found = Detections(
            placement.boxes_to_original(boxes),
            scores.astype(np.float32),
            labels.astype(np.int32),
            placement.original,
            self.labels,
            None if masks is None else masks.astype(np.float32),
        )
        return found.above(self.score_threshold) if self.score_threshold > self.thresholds.get("score", 0.0) else found

    def _check(self, outputs: Mapping[str, np.ndarray], images: int) -> None:
        missing = [name for name in OUTPUTS if name not in outputs]
        if missing:
            raise BackendError(
                f"{self.runner.name}: expected the outputs {', '.join(OUTPUTS)}, found none of {', '.join(missing)}"
            )
        slots = outputs["scores"].shape[-1]
        expected = {"num_detections": (images,), "overflow": (images,), "boxes": (images, slots, 4)}
        expected |= {"scores": (images, slots), "labels": (images, slots)}
        if "masks" in outputs:
            side = outputs["masks"].shape[-1]
            expected["masks"] = (images, slots, side, side)
        for name, shape in expected.items():
            if outputs[name].shape != shape:
                raise BackendError(
                    f"{self.runner.name}: {name}: expected {list(shape)}, found {list(outputs[name].shape)}"
                )
        counts = outputs["num_detections"]
        if counts.min(initial=0) < 0 or counts.max(initial=0) > slots:
            raise BackendError(f"{self.runner.name}: num_detections {counts.tolist()}, expected 0…{slots}")

    def close(self) -> None:
        """Frees the engine; calls afterwards raise BackendError."""
        self.runner.close()
        if self._gpu is not None:
            self._gpu.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pairs(images: Iterable[Any], proposals: Iterable[Boxes | None] | None) -> Iterator[tuple[Any, Boxes | None]]:
    """Photos with their proposals. ProposalError where there are more of the ones than of the others."""
    if proposals is None:
        yield from ((image, None) for image in images)
        return
    one, other = iter(images), iter(proposals)
    none = object()
    while True:
        pair = next(one, none), next(other, none)
        ended = [value is none for value in pair]
        if any(ended):
            if not all(ended):
                raise ProposalError("expected proposals for each photo, and a photo for each: their numbers differ")
            return
        yield pair


def as_rgb(image: Photo) -> np.ndarray:
    """An array as it is (checked), a path decoded: RGB uint8 [H, W, 3]. Raises ImageError."""
    if isinstance(image, (str, Path)):
        return read_image(image)
    check_rgb(image)
    return image


def check_score(asked: float | None, built: float) -> None:
    """Raises BundleError if a score threshold is asked for below the one that the net was built with."""
    if asked is None:
        return
    if not 0 <= asked <= 1:
        raise BundleError(f"score threshold: expected 0…1, found {asked}")
    if asked < built:
        raise BundleError(
            f"score threshold {asked}: the bundle was exported with {built} and holds nothing below it; "
            f"give at least {built}, or export again with `regionrt export --score {asked}`"
        )
