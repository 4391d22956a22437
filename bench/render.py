"""`report.json` → `report.md` and a self-contained `report.html`, without measuring anything again."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regionrt.runtime.atomic import write_file_atomic

from . import plots
from .schema import Report, read_report
from .view import view

TEMPLATES = Path(__file__).parent / "templates"


def render(report: Report | str | Path, out_dir: str | Path) -> list[Path]:
    """Write report.json, report.md, report.html and pictures/*.jpg into `out_dir`; returns the first three.

    `report` is a `Report` or the path of a report.json; `BenchError` where that file is no report.
    """
    if not isinstance(report, Report):
        report = read_report(report)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    shown = view(report)
    if shown["pictures"]:
        (out / "pictures").mkdir(exist_ok=True)
    for picture in shown["pictures"]:
        for panel in picture["panels"]:
            write_file_atomic(out / panel["file"], base64.b64decode(panel["jpeg"]))
    texts = {"report.json": report.dumps(), "report.md": markdown(shown), "report.html": html(shown)}
    for name, text in texts.items():
        write_file_atomic(out / name, text.encode("utf-8"))
    return [out / name for name in texts]


def html(shown: dict[str, Any]) -> str:
    """The page of a report."""
    report = shown["report"]
    drawn = {
        "tradeoff": plots.tradeoff_plot(report),
        "latency": plots.latency_plot(report) if shown["measured"] else "",
        "stage_shares": plots.stages_plot(report) if shown["measured"] else "",
    }
    return page_of("report.html", {**shown, **drawn})


def markdown(shown: dict[str, Any]) -> str:
    """The same as Markdown tables."""
    return markdown_of("report.md", shown)


def page_of(template: str, shown: Mapping[str, Any]) -> str:
    """A page: style and plots inline, pictures as data, nothing fetched."""
    from markupsafe import Markup

    inline = {
        name: Markup((TEMPLATES / file).read_text(encoding="utf-8"))
        for name, file in (("style", "report.css"), ("script", "report.js"))
    }
    return str(_templates(autoescape=True).get_template(template).render(**shown, **inline))


def markdown_of(template: str, shown: Mapping[str, Any]) -> str:
    """Markdown; names are escaped so that none can break a table or become HTML."""
    environment = _templates(autoescape=False)
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
    text = environment.get_template(template).render(**shown)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _templates(autoescape: bool) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
