"""The report in a real browser: no console errors, nothing fetched, tables and plots there, no wider than a phone."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))
from example_report import example_report

from regionrt.bench.render import render

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine (apt-get install chromium)")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr",
    "--virtual-time-budget=3000",
]  # fmt: skip
PROBE = """<script>
addEventListener("load", () => {
  const shown = (e) => e.getClientRects().length > 0;
  const all = (s) => [...document.querySelectorAll(s)];
  const seen = JSON.stringify({
    width: document.documentElement.clientWidth,
    needed: document.documentElement.scrollWidth,
    svg: all("svg").filter(shown).map((e) => [e.getBoundingClientRect().width, e.querySelectorAll("text").length]),
    tables: all("table").filter(shown).map((e) => e.rows.length),
    pictures: all("img").map((e) => e.naturalWidth),
    fetched: performance.getEntriesByType("resource").length,
    ink: getComputedStyle(document.body).color,
    page: getComputedStyle(document.body).backgroundColor,
    small: Math.min(...all("svg text").filter(shown).map((e) => e.getBoundingClientRect().height)),
  });
  parent.postMessage(seen, "*");
});
</script></body>"""

# A browser window is at least 500 px wide; a frame in it is as narrow as a phone.
FRAME = """<!doctype html><body><iframe src="PAGE" width="WIDTH" height="900" style="border:0"></iframe><script>
addEventListener("message", (e) => { document.body.dataset.probe = e.data; });
</script></body>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    text = render(example_report(), folder)[2].read_text(encoding="utf-8")
    probed = folder / "probed.html"  # the page says about itself what a test wants to know
    probed.write_text(text.replace("</body>", PROBE), encoding="utf-8")
    return probed


def browse(page: Path, folder: Path, width: int, dark: bool) -> tuple[dict, str]:
    """(what the page says about itself, what the browser logged)."""
    frame = folder / "frame.html"
    frame.write_text(FRAME.replace("PAGE", page.as_uri()).replace("WIDTH", str(width)), encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    window = f"--window-size={width + 40},1000"
    command = [str(BROWSER), *FLAGS, scheme, f"--user-data-dir={folder / 'profile'}", window, "--dump-dom"]
    done = subprocess.run([*command, frame.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(found[1].replace("&quot;", '"')), done.stderr


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360], ids=["desktop", "phone"])
def test_the_page_renders(page, tmp_path, width, dark):
    seen, log = browse(page, tmp_path, width, dark)
    assert seen["width"] == width
    assert "CONSOLE" not in log
    assert seen["fetched"] == 0
    assert len(seen["svg"]) == 3  # of the two drawings of each plot the one that fits
    assert all(width > 300 and texts > 5 for width, texts in seen["svg"])
    assert len(seen["tables"]) == 6
    assert all(rows > 1 for rows in seen["tables"])
    assert len(seen["pictures"]) == 4
    assert all(width > 100 for width in seen["pictures"])
    assert seen["needed"] <= seen["width"]  # wide tables scroll inside themselves, the page does not
    assert seen["small"] >= 11  # px: legible
    ink, paper = (sum(map(int, re.findall(r"\d+", seen[name])[:3])) / 3 for name in ("ink", "page"))
    assert (ink > 200 and paper < 50) if dark else (ink < 50 and paper > 240)


def test_the_page_of_a_search_renders(tmp_path):
    """On a phone, in the dark: what is hardest to fit."""
    from test_search_report import example_search

    from regionrt.bench.search.report import write_report

    text = write_report(example_search(), tmp_path)[2].read_text(encoding="utf-8")
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace("</body>", PROBE), encoding="utf-8")
    for width in (360, 1280):
        seen, log = browse(probed, tmp_path, width, dark=width < 500)
        assert "CONSOLE" not in log
        assert seen["fetched"] == 0
        assert len(seen["svg"]) == 1
        assert len(seen["tables"]) == 3
        assert all(rows > 1 for rows in seen["tables"])
        assert seen["needed"] <= seen["width"] == width
        assert seen["small"] >= 11
