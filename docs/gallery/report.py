"""Take docs/gallery/NAME-*.png: a report of runs, looked at in Chromium at three widths.

.venv/bin/python docs/gallery/report.py NAME TITLE RUN...

Those there are: report, of runs/stdlib-docs/{dense,magnitude,platon,rpp}-*/, and study, of the study that
scripts/kill_study.py has killed five times (WORK/killed/runs/kills).
"""

import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import sync_playwright

from argprune.cli import main as argprune

HERE = Path(__file__).parent
# By name: width, height, light or dark, and how far down the page.
VIEWS: dict[str, tuple[int, int, Literal["light", "dark"], str]] = {
    "wide": (1600, 1400, "light", "header"),
    "dark": (900, 1250, "dark", "#training"),
    "narrow": (400, 1300, "light", "header"),
}


def main(pictures: str, title: str, runs: list[str]) -> None:
    """Make a report of the runs, and the pictures."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page = Path(folder) / "report.html"
        if status := argprune(["report", *runs, "--output", str(page), "--title", title]):
            raise SystemExit(status)
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for name, (width, height, scheme, place) in VIEWS.items():
            view = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            view.goto(page.as_uri())
            view.wait_for_selector("html[data-drawn]")
            view.select_option("#band", "range")
            view.evaluate(
                f"document.querySelector('{place}').scrollIntoView()" if place != "header" else "scrollTo(0, 0)"
            )
            shot = Image.open(io.BytesIO(view.screenshot()))
            # 256 colours are enough for a drawing, and a third of the size.
            shot.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
                HERE / f"{pictures}-{name}.png", optimize=True
            )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
