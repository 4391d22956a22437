"""What users type, as values: sizes, ranks, files of labels."""

from pathlib import Path

import typer

BACKGROUND = "__background__"


def size_from(text: str | None) -> tuple[int, int] | None:
    """`480x640` → (480, 640): height and width in pixels."""
    if text is None:
        return None
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise typer.BadParameter(f"expected HEIGHTxWIDTH in pixels, such as 480x640, found {text!r}")
    return int(height), int(width)


def sizes_from(text: str | None) -> tuple[tuple[int, int], ...]:
    """`480x640,800x1088` → (height, width) of each."""
    return tuple(size for part in (text or "").split(",") if part and (size := size_from(part.strip())))


def ranks_from(text: str) -> dict[str, int]:
    """`fc6=1024,fc7=256` → ranks by layer."""
    ranks: dict[str, int] = {}
    for part in text.split(","):
        name, _, rank = (p.strip() for p in part.partition("="))
        if not name or not rank.isdecimal() or name in ranks:
            raise typer.BadParameter(f"expected layers and ranks such as fc6=1024,fc7=256, found {part!r}")
        ranks[name] = int(rank)
    return ranks


def numbers_from(text: str) -> tuple[int, ...]:
    """`300,100` → whole numbers."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(f"expected whole numbers such as 300,100, found {text!r}")
    return tuple(map(int, parts))


def names_from(text: str | None) -> tuple[str, ...] | None:
    """`person,car` → names."""
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else None


def labels_from(path: Path | None) -> tuple[str, ...] | None:
    """One name per line, the class of index 1 first; a first line `__background__` is accepted."""
    if path is None:
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path}: expected a text file with one label per line ({error})") from error
    while names and not names[-1]:
        names.pop()
    if not names or not all(names):
        raise typer.BadParameter(f"{path}: expected one label per line and no empty lines")
    return tuple(names if names[0] == BACKGROUND else [BACKGROUND, *names])
