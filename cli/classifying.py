"""The verb that asks OverFeat what a photo shows: by all windows, by ten views, and with its class map drawn."""

import io
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from . import console
from .app import verb
from .arguments import AsJson, Classes


@verb()
def classify(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="of overfeat")],
    image: Annotated[list[Path] | None, typer.Argument(metavar="IMAGE…", help="photos")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="the photos in grey, red where their likeliest class is")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="accuracy on a VOC or COCO folder, or `shapes`")
    ] = None,
    split: str = "test",
    classes: Classes = None,
    max_images: Annotated[int | None, typer.Option(help="of --data: only the first ones")] = None,
    as_json: AsJson = False,
) -> None:
    """What photos show, by OverFeat's dense and ten-view classification; with --data how often that is right."""
    from regionrt.train.checkpoint import read_checkpoint
    from regionrt.train.classification import Classifier

    if not image and data is None:
        raise typer.BadParameter("expected photos, or --data for accuracy on a data set: found neither")
    if max_images is not None and max_images < 1:
        raise typer.BadParameter(f"--max-images: expected 1 or more, found {max_images}")
    read = read_checkpoint(checkpoint)
    classifier = Classifier(read)
    answer: dict[str, Any] = {}
    if image:
        answer["photos"] = _photos(classifier, image, out)
        if not as_json:
            rows = [
                [one["photo"], *(f"{one[way]['label']} {100 * one[way]['score']:.1f} %" for way in ("dense", "views"))]
                for one in answer["photos"]
            ]
            console.table("likeliest class", ["photo", "all windows", "ten views"], rows)
    if data is not None:
        answer["data"] = _figures(classifier, read, data, split, classes, max_images)
        if not as_json:
            names = {
                "dense": "class of the main object, all windows",
                "views": "class of the main object, ten views",
                "localisation": "class and box of the first detection",
            }
            rows = [[text, console.points(answer["data"][name])] for name, text in names.items()]
            console.table(f"{data}, {split}, {answer['data']['images']} images", ["right", "%"], rows)
    if as_json:
        console.print_json(answer)


def _photos(classifier: Any, files: list[Path], out: Path | None) -> list[dict[str, Any]]:
    from PIL import Image

    from regionrt.runtime.atomic import write_file_atomic
    from regionrt.runtime.image import read_image
    from regionrt.runtime.writing import JPEG_QUALITY, output_names, spare_photos

    names = output_names([str(file) for file in files])
    if out is not None:
        spare_photos(names, out, (".jpg",))
        out.mkdir(parents=True, exist_ok=True)
    found = []
    for file in files:
        pixels = read_image(file)
        said = classifier(pixels)
        row: dict[str, Any] = {"photo": str(file)}
        for way, scores in (("dense", said.dense), ("views", said.views)):
            best = int(np.argmax(scores))
            row[way] = {"label": classifier.labels[best + 1], "score": float(scores[best])}
        found.append(row)
        if out is not None:
            picture = io.BytesIO()
            drawn = classifier.picture(pixels, int(np.argmax(said.dense)) + 1)
            Image.fromarray(drawn).save(picture, "JPEG", quality=JPEG_QUALITY)
            write_file_atomic(out / f"{names[str(file)]}.jpg", picture.getvalue())
    return found


def _figures(
    classifier: Any, checkpoint: Any, data: str, split: str, classes: str | None, max_images: int | None
) -> dict[str, Any]:
    from regionrt.train.classification import accuracy
    from regionrt.train.data import open_data
    from regionrt.train.localisation_metrics import evaluate_localiser
    from regionrt.train.torch_runner import torch_predictor

    from .values import names_from

    opened = open_data(data, split, classifier.labels, names_from(classes))
    with console.counting("classes") as tell:
        right = accuracy(classifier, opened, max_images=max_images, progress=tell)
    with torch_predictor(checkpoint) as predict, console.counting("boxes") as tell:
        located = evaluate_localiser(predict, opened, max_images=max_images, progress=tell)
    return {
        "split": split,
        "images": right.images,
        "dense": right.dense,
        "views": right.views,
        "localisation": located.metrics["localisation"],
    }
