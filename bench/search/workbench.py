"""Where a search builds the artefact of a setting, times it beside the base, and evaluates it."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from regionrt.export.bundle import ExportOptions, Prepared, export_bundle
from regionrt.export.compress.any_rank import AnyRank
from regionrt.export.compress.calibration import Photo, spread
from regionrt.export.errors import ExportError
from regionrt.runtime import load
from regionrt.runtime.bundle import sha256_of
from regionrt.runtime.clock import TimingOptions
from regionrt.runtime.errors import BackendError
from regionrt.runtime.machine import describe_machine, usable_cores
from regionrt.runtime.predictor import Predictor
from regionrt.train.checkpoint import Checkpoint
from regionrt.train.models import MODELS
from regionrt.train.tasks import TASKS
from regionrt.train.torch_runner import torch_predictor

from ..errors import BenchError
from ..latency import speedup, time_requests
from ..photos import photos_of_data
from ..schema import Ratio
from .drop import contract_metrics, points_lost
from .journal import Journal
from .options import SearchOptions
from .settings import FP32, Setting
from .trial import Trial

Progress = Callable[[str, float], None]
_MEASURED = 1e9  # of int8: every layer's sensitivity is measured, and none is kept in fp32 for it


class Workbench:
    """Trials of one search, each from the journal if it stands there, else measured and entered.

    A context manager: it holds the base's artefact open, and a scratch folder. Raises what exporting and loading the
    base raise, DataError for splits that are not there, BenchError for a journal of another search.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        data: str | Path,
        options: SearchOptions,
        journal: Path,
        layers: tuple[str, ...] = (),
        progress: Progress = lambda text, share: None,
    ) -> None:
        self.checkpoint, self.options = checkpoint, options
        self.share = 0.0  # of the search that is done, for who watches
        self._tell = progress
        self.task = TASKS[MODELS[checkpoint.model].task]
        self.threads = options.threads or usable_cores()
        self.started = time.perf_counter()
        self.data = str(data)
        searched, calibrated = (self._open(split) for split in (options.split, options.calibrated_on))
        self._searched = searched
        self.timed_on = photos_of_data(searched, options.photos)
        samples = [calibrated[i] for i in spread(range(len(calibrated)), options.calibration_images)]
        self.photos = [Photo(sample.name, sample.image) for sample in samples]
        self.pairs = AnyRank(checkpoint, layers, self.photos, lambda text, share: self.say(f"calibrate: {text}"))
        self.journal = Journal(journal, self._about(len(searched)))
        self._graphs: dict[str, Prepared] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Workbench:
        with ExitStack() as stack:
            self.scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self.say("reference: PyTorch")
            self.reference = self._reference()
            self.say("base: fp32")
            self.base_folder = self.build(Setting(), self.scratch / "base")
            self.base = stack.enter_context(self.open(self.base_folder, Setting()))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def time_left(self) -> bool:
        minutes = self.options.minutes
        return minutes is None or time.perf_counter() - self.started < 60 * minutes

    def say(self, text: str) -> None:
        self._tell(text, self.share)

    def judged_data(self) -> Any:
        """The split that the contract is judged on."""
        return self._open(self.options.judged_on)

    def measure(self, setting: Setting, worth: Callable[[Ratio], bool] = lambda ratio: True) -> Trial:
        """The trial of a setting; it is evaluated only where `worth` says so of how much faster it is.

        What cannot be exported or run is a trial that failed, not an error.
        """
        known = self.known(setting)
        if known is not None and (known.drop is not None or known.failed or not worth(_ratio_of(known))):
            return known
        folder = self.scratch / "trial"
        try:
            self.say(f"{setting}: export")
            self.build(setting, folder)
            with self.open(folder, setting) as predict:
                trial = self._measured(setting, predict, folder, worth)
        except (ExportError, BackendError) as error:
            trial = Trial(setting, failed=" ".join(str(error).split()))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.journal.put(setting.key, trial.to_json())
        return trial

    def known(self, setting: Setting) -> Trial | None:
        """From the journal; BenchError where the entry is none of ours."""
        entry = self.journal.get(setting.key)
        try:
            return None if entry is None else Trial.from_json(entry)
        except (KeyError, TypeError, ValueError) as error:
            raise BenchError(f"{self.journal.file}: {setting} is no whole entry: remove the file") from error

    def checkpoint_of(self, setting: Setting) -> Checkpoint:
        return self.pairs.at(setting.ranks) if setting.ranks else self.checkpoint

    def build(self, setting: Setting, folder: Path, final: bool = False) -> Path:
        """The setting's bundle: the dense stages in its precision. final: int8 measures its own layers' sensitivity, so
        that its table is whole; a trial takes those of the same ranks at the base's size and number of proposals."""
        source = self.checkpoint_of(setting)
        keep: tuple[str, ...] = ()
        most_error = setting.most_error or ExportOptions.most_error
        if setting.precision == "int8" and not final:
            sensitive = self._sensitivity(setting, source)
            keep = tuple(name for name, error in sensitive.items() if not error <= most_error)
            most_error = math.inf
        options = ExportOptions(
            precision=setting.precision, ops=("staged",), size=setting.size, proposals=setting.proposals, keep=keep,
            most_error=most_error, calibration=self.options.calibration,
        )  # fmt: skip
        prepared = self._graph_of(setting)
        return export_bundle(
            source, folder, options, photos=self.photos if setting.precision == "int8" else None, prepared=prepared
        )

    def open(self, folder: Path, setting: Setting) -> Predictor:
        return load(folder, self.options.backend, threads=self.threads, form="staged", precision=setting.precision)

    def times(self, predictors: Mapping[str, Predictor], seconds: float) -> Any:
        """`time_requests` of all of them in turn, on the search's photos."""
        timing = TimingOptions(2, min(0.5, seconds / 5), seconds=seconds, least_rounds=8)
        return time_requests(predictors, self.timed_on.images, timing, batch=1)

    def _graph_of(self, setting: Setting) -> Prepared:
        """What exports of settings that differ in precision alone share: the graph, which takes longest."""
        key = replace(setting, precision=FP32, most_error=None).key
        if key not in self._graphs:
            as_it_is = Setting().key
            self._graphs = {k: v for k, v in self._graphs.items() if k == as_it_is} | {key: Prepared()}
        found = self._graphs[key]
        found.quantization = None
        return found

    def _measured(self, setting: Setting, predict: Predictor, folder: Path, worth: Callable[[Ratio], bool]) -> Trial:
        self.say(f"{setting}: latency")
        timed = self.times({"base": self.base, "trial": predict}, self.options.seconds).latencies
        faster = speedup(timed["base"], timed["trial"], self.options.seed)
        drop = None
        if worth(faster):
            found = self._evaluate(predict, str(setting))
            drop = points_lost(self.reference, found)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        return Trial(setting, faster, timed["trial"].p50_ms, timed["base"].p50_ms, drop, size)

    def _evaluate(self, predict: Predictor, what: str) -> dict[str, float]:
        def tell(done: int, total: int) -> None:
            self.say(f"{what}: image {done} of {total}")

        found = self.task.evaluate(predict, self._searched, max_images=self.options.max_images, progress=tell)
        return contract_metrics(self.task, found.metrics)

    def _reference(self) -> dict[str, float]:
        known = self.journal.get("reference")
        if known is None:
            with torch_predictor(self.checkpoint) as predict:
                known = self._evaluate(predict, "PyTorch")
            self.journal.put("reference", known)
        return {str(name): float(value) for name, value in known.items()}

    def _sensitivity(self, setting: Setting, source: Checkpoint) -> dict[str, float]:
        """By layer, of these ranks in int8; measured once, at the base's size."""
        key = f"sensitivity {Setting(setting.ranks).key}"
        known = self.journal.get(key)
        if known is None:
            options = ExportOptions(
                precision="int8", ops=("staged",), most_error=_MEASURED, calibration=self.options.calibration
            )
            prepared, folder = self._graph_of(Setting(setting.ranks)), self.scratch / "sensitivity"
            export_bundle(
                source, folder, options, photos=self.photos, prepared=prepared,
                progress=lambda text, share: self.say(text),
            )  # fmt: skip
            shutil.rmtree(folder)
            assert prepared.quantization is not None
            known = {name: min(error, _MEASURED) for name, error in prepared.quantization.sensitivity.items()}
            self.journal.put(key, known)
        return {str(name): float(error) for name, error in known.items()}

    def _open(self, split: str) -> Any:
        return self.task.open_data(self.data, split, self.checkpoint.labels, self.options.classes)

    def _about(self, images: int) -> dict[str, Any]:
        """What the measurements hold for; the budget is not among it, so that another one goes on from them."""
        options = self.options
        return {
            "checkpoint": _hash_of(self.checkpoint),
            "data": self.data,
            "split": f"{options.split}, {min(images, options.max_images or images)} images",
            "calibration": f"{options.calibration} on {len(self.photos)} images of {options.calibrated_on}",
            "classes": list(options.classes) if options.classes is not None else None,
            "backend": options.backend,
            "threads": self.threads,
            "machine": str(describe_machine()["processor"]),
            "precision of the base": FP32,
            "seed": options.seed,
        }


def _ratio_of(trial: Trial) -> Ratio:
    return trial.faster or Ratio(0.0, 0.0, 0.0)


def _hash_of(checkpoint: Checkpoint) -> str:
    if checkpoint.path is not None:
        return sha256_of(checkpoint.path)
    digest = hashlib.sha256(repr((checkpoint.model, dict(checkpoint.config), checkpoint.labels)).encode())
    for name, value in sorted(checkpoint.state_dict.items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
