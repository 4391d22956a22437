"""Arguments that several verbs share."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .values import labels_from

_PHOTOS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
Data = Annotated[
    str, typer.Option("--data", metavar="DIR", help="VOC, COCO or CamVid folder, or `shapes`, made on the fly")
]
Classes = Annotated[str | None, typer.Option(help="comma-separated; only these classes of the data")]
Model = Annotated[str | None, typer.Option(help="of a plain state_dict: torchvision/<builder>")]
Labels = Annotated[Path | None, typer.Option(help="of a plain state_dict: one class per line")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Size = Annotated[str | None, typer.Option(metavar="HxW", help="canvas in pixels, multiples of the stride")]
Calibrate = Annotated[
    Path | None, typer.Option("--calibrate", metavar="DIR", help="photos, for int8 and fp8; fp16 and bf16 check ranges")
]
CalibrationMethod = Annotated[str, typer.Option("--calibration", help="percentile, entropy or minmax")]
CalibrationImages = Annotated[int, typer.Option("--calibration-images", help="how many, evenly over the folder")]
Keep = Annotated[str | None, typer.Option("--keep", metavar="LAYER,…", help="layers of the graph to keep in fp32")]
Score = Annotated[float | None, typer.Option("--score", help="score threshold; default: the model's")]
Nms = Annotated[float | None, typer.Option("--nms", help="IoU threshold of the final NMS")]
WindowScore = Annotated[float | None, typer.Option("--window-score", help="OverFeat: of windows that are merged")]
Merge = Annotated[
    float | None, typer.Option("--merge", help="OverFeat: match score, 0 to 2, up to which boxes are merged")
]
Candidates = Annotated[
    int | None, typer.Option("--candidates", help="most (region, class) pairs that enter the final NMS, or are merged")
]
Detections = Annotated[int | None, typer.Option("--detections", help="most detections of an image")]
Proposals = Annotated[int | None, typer.Option("--proposals", help="most proposals of an image")]
MostError = Annotated[float, typer.Option("--most-error", help="int8, fp8: layers that alone cost more stay in fp32")]


def checkpoint_from(path: Path, model: str | None, labels: Path | None) -> Any:
    """The checkpoint at `path`; `model` and `labels` say what a plain state_dict is."""
    from regionrt.train.checkpoint import read_checkpoint

    return read_checkpoint(path, model, labels_from(labels))


def photos_from(folder: Path, count: int) -> Any:
    """At most `count` photos of a folder and its folders, evenly over their sorted names; ExportError without any."""
    from regionrt.export import ExportError
    from regionrt.export.compress.calibration import Photo, spread
    from regionrt.runtime import read_image

    if count < 1:
        raise typer.BadParameter(f"--calibration-images: expected at least 1, found {count}")
    if not folder.is_dir():
        raise ExportError(f"{folder}: expected a folder of photos to calibrate on, found none")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _PHOTOS and path.is_file())
    if not files:
        raise ExportError(f"{folder}: expected photos to calibrate on ({', '.join(_PHOTOS)}), found none")
    return [Photo(str(path.relative_to(folder)), partial(read_image, path)) for path in spread(files, count)]
