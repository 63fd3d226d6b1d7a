"""The picture of a report that the README shows: python tools/screenshot.py runs/a2mim_xcit/report.html docs/report.png

Needs Chromium and playwright. The picture is the top of the page, at most 300 kB.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1200, 1180  # pixels; the device scale is 1, the default
MOST_BYTES = 300_000


def take(page: Path, out: Path) -> int:
    """Writes the picture and returns its size in bytes."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("no Chromium was found: install the package chromium")
    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        view.goto(page.resolve().as_uri())
        shot = Image.open(io.BytesIO(view.screenshot())).convert("RGB")
        browser.close()
    for colours in (256, 128, 64, 32):
        shot.quantize(colours).save(out, optimize=True)
        if out.stat().st_size <= MOST_BYTES:
            break
    return out.stat().st_size


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    print(f"{sys.argv[2]}: {take(Path(sys.argv[1]), Path(sys.argv[2]))} bytes")
