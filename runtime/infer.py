"""Runs a bundle on photos: `python runtime/infer.py BUNDLE IMAGE…`, and what `regionrt infer` calls."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a script: become the module regionrt.runtime.infer
    _here = Path(__file__).resolve()
    # The script's own folder would let `import image` and the like find our files: out with it.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _here.parent]
    _root = next((root for root in _here.parents[1:3] if (root / "regionrt" / "__init__.py").is_file()), None)
    if _root is not None and str(_root) not in sys.path:
        sys.path.insert(0, str(_root))
    __package__ = "regionrt.runtime"
    import regionrt.runtime  # noqa: F401  relative imports need the parent to be loaded

import argparse
import glob
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from .errors import ImageError, RegionRTError
from .semantic import SemanticMap

if TYPE_CHECKING:
    from .writing import CocoWriter, ImageWriter, JsonWriter, PaletteWriter

FORMATS = ("json", "coco", "image", "palette")
DRAW_SCORE = 0.5
SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm"}
    | {".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp"}
)
"""What counts as an image inside a folder; a file named on the command line is opened whatever it is called."""
EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, runs it, and returns the exit code: 0 done, 1 something failed, 2 wrong use.

    An image that cannot be read is reported and the others go on; the exit code is then 1. Errors are one line on
    standard error, with a traceback only under --debug.
    """
    parser = _parser()
    try:
        options = parser.parse_args(argv)
        _check(parser, options)
    except SystemExit as stop:  # argparse's way to say --help (0) or wrong use (2)
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    try:
        with _plain_warnings():
            return _run(options)
    except RegionRTError as error:
        if options.debug:
            traceback.print_exc()
        _say(f"error: {error}")
        return EXIT_FAILED
    except KeyboardInterrupt:
        _say("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `… | head` has seen enough; Python would complain again while it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        _say(f"error: {type(error).__name__}: {error} (a defect of regionrt: --debug shows where)")
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="regionrt infer", description="Run a bundle on photos.")
    parser.add_argument("bundle", type=Path, help="the folder that `regionrt export` writes")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, folders (not those inside them), globs"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write there; without it JSON goes to standard output")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="json",
        help="json: one object per photo; coco: one list of COCO results; image: photos with what was found drawn on; "
        "palette: label maps as PNGs",
    )
    parser.add_argument("--backend", default="auto", metavar="NAME", help="auto: the first that runs here")
    parser.add_argument(
        "--provider",
        choices=("cpu", "cuda", "tensorrt", "auto"),
        help="what ONNX Runtime computes with; only its artefacts are taken then; default: the CPU",
    )
    parser.add_argument(
        "--score",
        type=float,
        metavar="S",
        help=f"least score, 0…1, not below the bundle's; default: the bundle's, for pictures at least {DRAW_SCORE}",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: one per physical core")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.score is not None and not 0 <= options.score <= 1:
        parser.error(f"--score: expected 0…1, found {options.score}")
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads: expected at least 1, found {options.threads}")
    if options.format in ("image", "palette") and options.out is None:
        parser.error(f"--format {options.format}: say where the pictures go with --out DIR")


def _run(options: argparse.Namespace) -> int:
    from .loading import load  # NumPy and Pillow, which --help can do without
    from .writing import output_names

    failed: list[str] = []

    def report(name: str, error: ImageError) -> None:
        if options.debug:
            traceback.print_exception(error)
        _say(f"error: {error}")
        failed.append(name)

    paths = _expand(options.images, lambda name, why: report(name, ImageError(f"{name}: {why}")))
    if not paths:
        return EXIT_FAILED
    writer = _writer(options, output_names(paths))
    progress = _Progress(len(paths), sys.stderr)
    started, objects, done = time.perf_counter(), 0, 0
    what = "objects"
    with load(options.bundle, options.backend, options.score, options.threads, provider=options.provider) as predict:
        about = predict.about
        on = f", provider {about['provider']}" if options.provider else ""
        _say(
            f"{options.bundle}: {about['backend']} {about['form']} {about['precision']}, {about['threads']} threads{on}"
        )
        for name, image, found in predict.stream_images(paths, report):
            objects += writer.write(name, image, found)
            what = "classes" if isinstance(found, SemanticMap) else what
            done += 1
            progress.show(done, len(failed))
    writer.finish()
    where = f", in {options.out}" if options.out else ""
    failures = f", {len(failed)} failed" if failed else ""
    _say(f"{done} photos, {objects} {what}, {time.perf_counter() - started:.1f} s{failures}{where}")
    return EXIT_FAILED if failed else EXIT_DONE


def _writer(
    options: argparse.Namespace, names: dict[str, str]
) -> JsonWriter | CocoWriter | ImageWriter | PaletteWriter:
    from .writing import CocoWriter, ImageWriter, JsonWriter, PaletteWriter

    if options.format == "image":
        return ImageWriter(names, options.out, DRAW_SCORE if options.score is None else options.score)
    if options.format == "palette":
        return PaletteWriter(names, options.out)
    if options.format == "coco":
        return CocoWriter(names, options.out, print)
    return JsonWriter(names, options.out, print)


def _expand(given: Sequence[str], report: Callable[[str, str], None]) -> list[str]:
    """Files, folders and globs -> files, each once, in the order given and sorted within one folder or glob."""
    files: dict[str, str] = {}
    for entry in given:
        if os.path.isdir(entry):
            found = sorted(os.path.join(entry, name) for name in os.listdir(entry) if _is_image(name))
            why = "the folder holds no images"
        elif os.path.exists(entry) or not glob.has_magic(entry):
            found, why = [entry], ""  # one that does not exist is reported when its turn comes
        else:
            found = sorted(path for path in glob.glob(entry, recursive=True) if _is_image(path))
            why = "no image matches"
        if not found:
            report(entry, why)
        for path in found:
            files.setdefault(os.path.realpath(path), path)
    return list(files.values())


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in SUFFIXES and not os.path.basename(path).startswith(".")


def _say(text: str) -> None:
    """A line on standard error, over the progress bar if there is one."""
    print(f"\r\x1b[K{text}" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as one line, without the file and the line of code that Python puts before them."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _say(f"warning: {message}")

    with warnings.catch_warnings():
        # Pillow warns of large photos by a limit of its own, below ours.
        warnings.filterwarnings("ignore", message="Image size", category=RuntimeWarning)
        warnings.showwarning = show
        yield


class _Progress:
    """A bar on a terminal; nothing where standard error is a file."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self._total, self._stream = total, stream
        self._started = time.perf_counter()
        self._on = stream.isatty() and total > 1

    def show(self, done: int, failed: int) -> None:
        if not self._on:
            return
        seen = done + failed
        rate = done / max(time.perf_counter() - self._started, 1e-9)
        left_s = (self._total - seen) / max(rate, 1e-9)
        bar = "█" * (24 * seen // self._total)
        self._stream.write(f"\r\x1b[K{bar:░<24} {seen}/{self._total}  {rate:.1f} photos/s  {left_s:.0f} s left")
        if seen >= self._total:
            self._stream.write("\r\x1b[K")
        self._stream.flush()


if __name__ == "__main__":
    sys.exit(main())
