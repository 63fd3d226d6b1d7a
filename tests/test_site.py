"""The site builds strictly and offline, its derived pages are fresh, and its pages work in a browser, from the disk."""

import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from a2mim.cli import build_parser
from a2mim.commands.arguments import join_sizes
from a2mim.commands.page import page
from a2mim.engine.recipes import find_recipe
from a2mim.protocols import protocol_names

ROOT = Path(__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
COMMANDS = next(action.choices for action in build_parser()._actions if isinstance(action.choices, dict))
TOO_WIDE = """[...document.querySelectorAll("article *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1)
    .map(e => e.tagName + " " + e.textContent.slice(0, 40)).slice(0, 3)"""
# `runs/<recipe>` in a docstring without backticks is an element that nobody sees
UNKNOWN = """[...document.querySelectorAll("*")].filter(e => e instanceof HTMLUnknownElement).map(e => e.tagName)"""


class Page(HTMLParser):
    """What a page holds: the ids that links may name, the links, and what a browser loads."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.loaded = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        told = dict(attributes)
        self.ids |= {told[key] for key in ("id", "name") if told.get(key)}
        if tag == "a" and told.get("href"):
            self.links.add(told["href"])
        if tag in ("script", "img", "iframe") or told.get("rel") == "stylesheet":
            self.loaded |= {told[key] for key in ("src", "href") if told.get(key)}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder of the built site. A warning of the build is an error, so that it is not called with --quiet."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Page]:
    return {
        path.name: Page(path.read_text(encoding="utf-8")) for path in site.glob("*.html") if path.name != "404.html"
    }


def test_the_page_of_commands_is_fresh():
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == page(build_parser()), (
        "write it again: python tools/write_pages.py"
    )


def test_every_page_stands_in_the_menu():
    menu = set(re.findall(r"(\w+\.md)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert menu == {path.name for path in (ROOT / "docs").glob("*.md")}


def test_the_site_asks_nobody_for_anything(pages):
    assert {"index.html", "tutorial.html", "api.html"} <= set(pages)
    for name, found in pages.items():
        assert not [url for url in found.loaded if urlparse(url).scheme in ("http", "https")], name


def test_every_link_of_the_site_leads_to_a_page_and_a_heading_of_it(site, pages):
    for name, found in pages.items():
        for link in found.links:
            url = urlparse(link)
            if url.scheme:
                continue
            target = unquote(url.path) or name
            assert (site / target).exists(), f"{name}: {link}"
            assert not url.fragment or target not in pages or unquote(url.fragment) in pages[target].ids, (
                f"{name}: {link}"
            )


def test_every_public_name_is_on_the_page_of_python_as_it_is_typed(pages):
    import a2mim

    assert {f"a2mim.{name}" for name in a2mim.__all__} | {"a2mim.masking.BlockMask"} <= pages["api.html"].ids


@pytest.mark.slow
def test_the_pages_and_their_search_work_from_the_disk_in_a_browser(site, pages):
    """No page asks for anything outside of the site, writes an error to the console, or is wider than a telephone."""
    sync = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    problems = []
    with sync.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 360, "height": 800})
        tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        # the icon may still be on its way when the next page is asked for: that is no fault of the site
        tab.on("requestfailed", lambda r: problems.append(r.url) if r.failure != "net::ERR_ABORTED" else None)
        for name in pages:
            tab.goto((site / name).as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") <= 360, (name, tab.evaluate(TOO_WIDE))
            assert tab.evaluate(UNKNOWN) == [], name
            assert not problems, (name, problems)
        tab.set_viewport_size({"width": 1280, "height": 800})
        tab.goto((site / "index.html").as_uri())
        tab.locator("input[name=query]").press_sequentially("torchvision")
        found = tab.locator(".md-search-result__link[href*='install.html']")
        found.first.wait_for(timeout=60_000, state="attached")
        assert not problems, problems
        browser.close()


def commands_of_pages():
    """(page, words) of every `a2mim …` line in the shell blocks of the pages, also behind torchrun or srun; without
    those that show an error.
    """
    for path in sorted((ROOT / "docs").glob("*.md")):
        blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", path.read_text(encoding="utf-8"), flags=re.S | re.M)
        for line in "".join(block for kind, block in blocks if kind in ("", "bash")).replace("\\\n", " ").splitlines():
            start = line.find("a2mim ")
            words = shlex.split(line[start:].rstrip("& "), comments=True) if start >= 0 and line[0] not in "$e" else []
            if len(words) > 1 and words[1] in COMMANDS:
                yield path.name, [word.replace("…", "x") for word in words[1:]]


def test_every_command_of_the_pages_can_be_typed_after_pip_install():
    """It parses, and names recipes that ship with a2mim, not files of a checkout."""
    parser, pages = build_parser(), set()
    for name, words in commands_of_pages():
        pages.add(name)
        try:
            chosen = parser.parse_args(join_sizes(words))
        except SystemExit:
            pytest.fail(f"{name}: a2mim {shlex.join(words)}")
        recipe = getattr(chosen, "config", None) or getattr(chosen, "recipe", None)
        if recipe and not recipe.startswith(("my_", "runs/")) and not recipe.isupper():
            assert "configs/" not in recipe, f"{name}: {recipe}"
            assert recipe in protocol_names("finetune") or find_recipe(recipe), f"{name}: {recipe}"
    assert {"tutorial.md", "finetune.md", "refine.md", "cluster.md", "export.md", "evaluation.md"} <= pages
