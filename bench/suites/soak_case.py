"""One artefact asked many times in this process: how much memory stays, whether answers and times stay the same."""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from regionrt.runtime.loading import load
from regionrt.runtime.machine import status_bytes

from .child import answer, given_job

THREADS = 8
_TENTHS = 10


@dataclass(frozen=True)
class Soaked:
    """What many requests left behind.

    resident: (requests so far, bytes) after the warm-up and after each further tenth. first_ms, last_ms: medians of the
    first and the last tenth behind the warm-up. changed: requests whose answer was not, to the byte, the first one to
    the same photo. changed_in_threads: the same of requests that `THREADS` threads made at once.
    """

    resident: tuple[tuple[int, int], ...]
    first_ms: float
    last_ms: float
    changed: int
    changed_in_threads: int

    @property
    def growth(self) -> float:
        """Of resident memory from the warm-up's end to the last request, of what it was then."""
        return self.resident[-1][1] / self.resident[0][1] - 1

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Soaked:
        return cls(**{**data, "resident": tuple((count, size) for count, size in data["resident"])})


def resident_bytes() -> int:
    """OSError where the system does not tell."""
    found = status_bytes("VmRSS")
    if found is None:
        raise OSError("this system does not tell how much memory a process holds: a soak needs Linux")
    return found


def soak(
    ask: Callable[[int], Any],
    photos: int,
    requests: int,
    tell: Callable[[str], None] = lambda text: None,
    memory: Callable[[], int] = resident_bytes,
) -> Soaked:
    """`requests` of `ask` (the number of a photo → its answer), photos in turn; the first tenth is the warm-up.

    ValueError where the requests have no whole tenths, or a tenth does not reach every photo.
    """
    tenth, rest = divmod(requests, _TENTHS)
    if tenth < photos or rest:
        least = _TENTHS * photos
        raise ValueError(
            f"expected at least {least} requests for {photos} photos, a multiple of {_TENTHS}, got {requests}"
        )
    wanted: dict[int, bytes] = {}
    times, resident, changed = [], [], 0
    for number in range(requests):
        photo = number % photos
        start = time.perf_counter()
        found = ask(photo)
        times.append(time.perf_counter() - start)
        digest = digest_of(found)
        changed += wanted.setdefault(photo, digest) != digest
        if (number + 1) % tenth == 0:
            del found
            gc.collect()
            resident.append((number + 1, memory()))
            tell(f"{number + 1} of {requests} requests")
    first, last = (1e3 * float(np.median(some)) for some in (times[tenth : 2 * tenth], times[-tenth:]))
    with ThreadPoolExecutor(THREADS) as threads:
        asked = [photo % photos for photo in range(THREADS * photos)]
        differ = sum(
            digest_of(found) != wanted[photo] for photo, found in zip(asked, threads.map(ask, asked), strict=True)
        )
    return Soaked(tuple(resident), first, last, changed, differ)


def digest_of(answer: Any) -> bytes:
    """Of all arrays of an answer, their types and shapes. ValueError for one without any."""
    arrays = {name: value for name, value in sorted(vars(answer).items()) if isinstance(value, np.ndarray)}
    if not arrays:
        raise ValueError(f"expected an answer of arrays, found {type(answer).__name__}")
    digest = hashlib.blake2b()
    for name, value in arrays.items():
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.digest()


def main() -> None:
    """The child: soaks the job on standard input. It imports what the artefact needs and no PyTorch."""
    job, tell = given_job()
    with np.load(job["photos"]) as stored:
        photos = [stored[name] for name in stored.files if name.startswith("photo_")]
        boxes = [stored[name] for name in stored.files if name.startswith("proposals_")]
    backend, form, precision = job["artifact"]
    predict = load(job["bundle"], backend, threads=job["threads"], form=form, precision=precision)
    given = [[found] for found in boxes] or [[] for _ in photos]  # what `predict` takes after a photo
    found = soak(lambda number: predict(photos[number], *given[number]), len(photos), job["requests"], tell)
    answer(job, vars(found))


if __name__ == "__main__":
    main()
