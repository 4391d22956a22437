"""Arguments that several verbs share."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .values import labels_from

Data = Annotated[
    str, typer.Option("--data", metavar="DIR", help="VOC, COCO or CamVid folder, or `shapes`, made on the fly")
]
Classes = Annotated[str | None, typer.Option(help="comma-separated; only these classes of the data")]
Model = Annotated[str | None, typer.Option(help="of a plain state_dict: torchvision/<builder>")]
Labels = Annotated[Path | None, typer.Option(help="of a plain state_dict: one class per line")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Size = Annotated[str | None, typer.Option(metavar="HxW", help="canvas in pixels, multiples of the stride")]


def checkpoint_from(path: Path, model: str | None, labels: Path | None) -> Any:
    """The checkpoint at `path`; `model` and `labels` say what a plain state_dict is."""
    from regionrt.train.checkpoint import read_checkpoint

    return read_checkpoint(path, model, labels_from(labels))
