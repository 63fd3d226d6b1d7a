"""The page as a reader and a browser get it: whole, self-contained, inert."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_runs import LAYOUT, judged, make_run

from a2mim.analysis.reconstructions import record_layout
from a2mim.cli import main
from a2mim.report import read_run, render, write_report
from a2mim.report.page import MOST_BYTES
from a2mim.report.pictures import reconstruction_rows, whole_sheets

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ATTACKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$\\frac{1}{2}$ & {{ 7 * 7 }}",
    "\x1b[2J\r\nerror: forged \\1 \u202e",
)


def attacked(folder: Path) -> Path:
    """A run whose every name comes from somebody unpleasant."""
    data = {"source": ATTACKS[0], "images": 9, "unreadable": {ATTACKS[1]: 1}, "first_unreadable": [ATTACKS[0]]}
    data["class_counts"] = dict.fromkeys(ATTACKS, 3)
    versions = {ATTACKS[1]: ATTACKS[0]}
    run = make_run(
        folder, name=ATTACKS[0], data=data, versions=versions, asked={"config": ATTACKS[1], "data": ATTACKS[0]}
    )
    (run / "settings.json").write_text(json.dumps({ATTACKS[0]: ATTACKS[1], "x": {"y": ATTACKS[2]}}))
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": 60, "event": "health", "says": ATTACKS[1]}) + "\n")
        log.write(json.dumps({"step": 60, "loss": 0.1, f"loss_{ATTACKS[0]}": 1, f"loss_{ATTACKS[2]}": 2}) + "\n")
    return run


class Elements(HTMLParser):
    """Counts elements, and keeps attributes that could load or run something."""

    def __init__(self, text: str):
        super().__init__()
        self.names, self.addresses, self.handlers, self.without_text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.names.append(tag)
        self.addresses += [found[key] for key in ("src", "href", "xlink:href") if key in found]
        self.handlers += [key for key in found if key.startswith("on")]
        if (tag == "img" and not found.get("alt")) or (tag == "svg" and not found.get("aria-label")):
            self.without_text.append(tag)


def test_names_on_the_page_are_printable_and_forge_no_line(tmp_path):
    page = render([read_run(attacked(tmp_path / "a"))])
    assert page.replace("\n", "").replace("\t", "").isprintable()
    assert not [line for line in page.splitlines() if line.lstrip().startswith("error:")]


@pytest.mark.parametrize("value", ["x", None, -1.5, 10**400, float("nan"), [[]], {"a": [], "b": "x"}], ids=repr)
def test_a_summary_and_a_log_of_any_types_make_a_page(tmp_path, monkeypatch, value):
    monkeypatch.setattr("a2mim.report.page.svg", lambda plot: "")
    run = make_run(tmp_path / "a", judged=judged())
    summary = json.loads((run / "summary.json").read_text())
    keys = {
        *summary,
        "asked",
        "data",
        "loss",
        "machine",
        "versions",
        "origins",
        "result",
        "seconds",
        "of_steps",
        "judged",
    }
    inner = {"unreadable", "class_counts", "first_unreadable", "images", "baseline", "interval", "top1_last", "config"}
    inner |= {"sizes"}
    for made in (dict.fromkeys(keys, value), {key: dict.fromkeys(inner, value) for key in keys}):
        (run / "summary.json").write_text(json.dumps(made))
        with (run / "log.jsonl").open("a") as log:
            line = {"step": 60, "loss": value, "data_share": value, "images_per_second": value, "says": value}
            log.write(json.dumps(line) + "\n" + json.dumps(line | {"step": value}) + "\n")
        assert "</html>" in render([read_run(run)])


def test_nothing_on_the_page_loads_or_runs_anything(tmp_path):
    found = Elements(render([read_run(attacked(tmp_path / "a"))]))
    assert "script" not in found.names and not found.handlers and not found.without_text
    assert all(address.startswith(("data:", "#")) for address in found.addresses)
    assert found.names.count("img") >= 4 and found.names.count("svg") >= 6


def test_the_first_words_of_the_page_say_whether_it_helped(tmp_path):
    text = render([read_run(make_run(tmp_path / "a", judged=judged()))])
    body = re.sub(r"<[^>]+>", " ", text[text.index("<body>") :])
    assert "Pre-training helped" in " ".join(body.split())[:300]


def test_two_runs_share_axes_and_show_only_the_settings_that_differ(tmp_path):
    first, second = make_run(tmp_path / "first", judged=judged()), make_run(tmp_path / "second")
    (second / "settings.json").write_text(json.dumps({"data": {"img_size": 96}, "seed": 0, "laptop": {}}))
    text = render([read_run(first), read_run(second)])
    table = text[text.index("Settings that differ") :]
    table = table[: table.index("</table>")]
    assert "data.img_size" in table and "seed" not in table
    assert "first: loss" in text and "second: loss" in text


def test_an_analysis_is_drawn_beside_the_untrained_network(tmp_path):
    run = make_run(tmp_path / "a")
    (run / "analysis").mkdir()
    lines = [{"label": label, "x": [0, 0.5, 1], "y": [1, 2, 3], "low": [0, 1, 2], "high": [2, 3, 4]} for label in "ab"]
    figure = {
        "title": "Interactions",
        "x_label": "order",
        "y_label": "J",
        "message": "the middle rises",
        "lines": lines,
    }
    (run / "analysis" / "interactions.json").write_text(json.dumps({"figures": [figure, {"title": "broken"}]}))
    text = render([read_run(run)])
    assert 'aria-label="the middle rises"' in text and "broken" not in text


def test_pictures_of_the_features_are_taken_from_the_run_and_from_nowhere_else(tmp_path):
    run = make_run(tmp_path / "a")
    (run / "representation").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(run / "representation" / "pca.png")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "secret.png")
    pictures = [{"file": name, "text": f"shows {name}"} for name in ("pca.png", "../secret.png", "../../secret.png")]
    (run / "representation" / "representation.json").write_text(
        json.dumps({"parts": [{"title": "Feature maps", "says": "three components", "rows": [pictures]}]})
    )
    text = render([read_run(run)])
    assert "shows pca.png" in text and "secret" not in text


def test_pictures_of_the_features_of_several_runs_stand_in_columns(tmp_path):
    runs = [make_run(tmp_path / name) for name in ("first", "second", "bare")]
    for run in runs[:2]:
        (run / "representation").mkdir()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(run / "representation" / "pca.png")
        row = [{"file": "pca.png", "text": f"map of {run.name}"}]
        made = {"parts": [{"title": "Feature maps", "says": "", "rows": [row]}]}
        (run / "representation" / "representation.json").write_text(json.dumps(made))
    text = render([read_run(run) for run in runs])
    text = text[text.index('<h2 id="representation">') :]
    text = text[: text.index("</section>")]
    columns = text[text.index('<div class="runs">') :].split("<h3>first</h3>")[1].split("<h3>second</h3>")
    columns = [columns[0], *columns[1].split("<h3>bare</h3>")]
    assert ["map of first" in one for one in columns] == [True, False, False]
    assert ["map of second" in one for one in columns] == [False, True, False]
    assert "drew no pictures of its features" in columns[2]


def test_a_run_of_a_thousand_lines_fits_into_the_bound(tmp_path):
    run = make_run(tmp_path / "a", steps=3000, judged=judged())
    assert write_report([run], tmp_path / "r.html").stat().st_size < MOST_BYTES / 4


def test_the_command_writes_beside_the_run_and_asks_for_a_name_for_several(tmp_path, capsys):
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second", status="running")
    assert main(["report", str(first)]) == 0 and (first / "report.html").is_file()
    assert main(["report", str(first), str(second)]) == 1
    assert "add --out" in capsys.readouterr().err
    assert main(["report", str(first), str(second), "--out", str(tmp_path / "both.html")]) == 0
    assert "did not finish" in (tmp_path / "both.html").read_text(encoding="utf-8")
    assert main(["report", str(tmp_path / "missing")]) == 1 and "no such folder" in capsys.readouterr().err


# The texts of figures that reach out of their figure, by more than a pixel.
CUT_OFF = """() => [...document.querySelectorAll("svg text")].filter(text => {
    const inner = text.getBoundingClientRect(), outer = text.closest("svg").getBoundingClientRect();
    return inner.left < outer.left - 1 || inner.right > outer.right + 1
        || inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1;
}).map(text => text.textContent)"""


# Cells of tables that are narrower than their words: on a phone "timm" must not stand as "ti", "m", "m".
BROKEN = """() => [...document.querySelectorAll("section > .scroll th, section > .scroll td")].filter(
    cell => cell.getBoundingClientRect().width < 90).map(cell => cell.textContent)"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_real_browser_shows_it_whole_and_asks_nobody(tmp_path):
    sync = pytest.importorskip("playwright.sync_api")
    pages = [write_report([attacked(tmp_path / "a")], tmp_path / "attacked.html")]
    pages.append(write_report([tmp_path / "a", make_run(tmp_path / "b", judged=judged())], tmp_path / "two.html"))
    with sync.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for path in pages:
            for width, scheme in ((360, "light"), (1600, "dark")):
                page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                said, asked = [], []
                page.on("console", lambda message, said=said: said.append(message.text))
                page.on("pageerror", lambda error, said=said: said.append(str(error)))
                page.on("dialog", lambda dialog, said=said: (said.append(dialog.message), dialog.dismiss()))
                page.on("request", lambda request, asked=asked: asked.append(request.url))
                page.goto(path.as_uri())
                assert said == [] and [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert "<script>alert(1)</script>" in page.inner_text("body")
                assert page.evaluate(CUT_OFF) == []
                assert page.evaluate(BROKEN) == []
                page.close()
        browser.close()


def test_sheets_of_features_show_the_prediction_of_each_step_beside_the_target(tmp_path):
    run = make_run(tmp_path / "a")
    layout = json.loads((run / "reconstructions" / "layout.json").read_text())
    layout["columns"] = ["image", "masked", "prediction", "target"]
    (run / "reconstructions" / "layout.json").write_text(json.dumps(layout))
    first = reconstruction_rows(read_run(run).pictures)[0]
    assert [tile.caption for tile in first] == ["image", "visible", "target", "step 0", "step 60"]
    assert "features predicted after 60 steps" in first[-1].text


def _sheet(path: Path, header: int, colour: int) -> None:
    """Two images of 32 px under a black header, each panel of one grey, as a run draws them."""
    sheet = np.full((header + 2 * 32 + 4, 4 * 32 + 3 * 4, 3), 255, np.uint8)
    sheet[:header] = 0
    for top in (header, header + 36):
        for left in range(0, 144, 36):
            sheet[top : top + 32, left : left + 32] = colour
    Image.fromarray(sheet).save(path)


@pytest.mark.parametrize("overwritten", [False, True])
def test_each_sheet_is_cut_by_its_own_header(tmp_path, overwritten):
    """A version with a lower header drew step 0; overwritten: a later one then replaced the only recorded layout."""
    folder = make_run(tmp_path / "a") / "reconstructions"
    _sheet(folder / "step_00000000.png", 24, 100)
    _sheet(folder / "step_00000060.png", 44, 200)
    if overwritten:
        (folder / "layout.json").write_text(json.dumps(LAYOUT | {"header": 44}))
    else:
        record_layout(folder, 60, LAYOUT | {"header": 44})
        record_layout(folder, 60, LAYOUT | {"header": 44})  # drawn again after another stop
    rows = reconstruction_rows(read_run(tmp_path / "a").pictures)
    assert len(rows) == 2
    for row in rows:
        for tile, grey in zip(row, (200, 200, 100, 200), strict=True):
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(tile.source.partition(",")[2]))).convert("L"))
            assert pixels.shape == (32, 32) and np.abs(pixels.astype(int) - grey).max() <= 3
    recorded = [picture.layout["header"] for picture in read_run(tmp_path / "a").pictures]
    assert recorded == ([44, 44] if overwritten else [24, 44])


def test_a_sheet_of_other_columns_is_shown_whole(tmp_path):
    folder = make_run(tmp_path / "a") / "reconstructions"
    (folder / "layout.json").write_text(json.dumps(LAYOUT | {"tile": [40, 32]}))
    pictures = read_run(tmp_path / "a").pictures
    assert reconstruction_rows(pictures) == [] and len(whole_sheets(pictures)) == 2


def test_sheets_of_different_numbers_of_images_show_those_that_all_have(tmp_path):
    folder = make_run(tmp_path / "a") / "reconstructions"
    with Image.open(folder / "step_00000000.png") as sheet:
        sheet.crop((0, 0, sheet.width, LAYOUT["header"] + 32)).save(folder / "step_00000000.png")
    assert len(reconstruction_rows(read_run(tmp_path / "a").pictures)) == 1
