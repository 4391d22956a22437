"""The verb that computes proposals beforehand and says how much of the data they cover."""

from dataclasses import asdict
from typing import Annotated

import typer

from . import console
from .app import verb
from .arguments import AsJson, Classes
from .values import names_from


@verb()
def proposals(
    data: Annotated[str, typer.Argument(metavar="DATA", help="VOC or COCO folder, or `shapes`")],
    split: str = "train",
    classes: Classes = None,
    mode: Annotated[str, typer.Option(help="of selective search: fast, or quality")] = "fast",
    width: Annotated[int, typer.Option(help="px that wider photos are resized to first")] = 400,
    k: Annotated[int, typer.Option(help="scale of the first segments: smaller, more boxes")] = 30,
    step: Annotated[int, typer.Option(help="what is added to it for the next segments")] = 50,
    most: Annotated[int, typer.Option(help="boxes of a photo that count")] = 2000,
    max_images: Annotated[int | None, typer.Option(help="only the first ones")] = None,
    workers: Annotated[int | None, typer.Option(help="processes; default: one per core")] = None,
    as_json: AsJson = False,
) -> None:
    """Selective search over a split, kept for training and evaluation, and its recall of the objects."""
    from regionrt.runtime.selective_search import SelectiveSearch
    from regionrt.train.data import open_data
    from regionrt.train.data.proposals import IOUS, compute_proposals, recall

    try:
        search = SelectiveSearch(mode, width, k, step)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    for name, value in (("--most", most), ("--max-images", max_images), ("--workers", workers)):
        if value is not None and value < 1:
            raise typer.BadParameter(f"{name}: expected 1 or more, found {value}")
    opened = open_data(data, split, None, names_from(classes))
    with console.counting(f"selective search on {split}") as tell:
        computed = compute_proposals(opened, search, most_images=max_images, workers=workers, progress=tell)
    with console.counting("recall") as tell:
        found = recall(opened, search, most=most, most_images=max_images, progress=tell)
    if as_json:
        console.print_json({**asdict(found), "computed": computed, "search": search.to_json(), "ious": list(IOUS)})
        return
    shown = (0.5, 0.6, 0.7, 0.8, 0.9)
    console.say(
        f"{data}, {split}: {found.images} images, {found.boxes_per_image:.0f} boxes each, {computed} searched now"
    )
    rows = [
        [name, str(found.objects[name]), *(console.points(shares[IOUS.index(iou)]) for iou in shown)]
        for name, shares in found.by_iou.items()
    ]
    console.table("recall by IoU, %", ["class", "objects", *map(str, shown)], rows)
    curve = [[str(count), console.points(share)] for count, share in found.by_count]
    console.table("at IoU 0.5", ["boxes", "recall"], curve)
