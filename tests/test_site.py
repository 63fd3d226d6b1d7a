"""The site builds strictly and offline, and its derived pages are fresh."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from a2mim.cli import build_parser
from a2mim.commands.page import page

ROOT = Path(__file__).parents[1]


def test_the_page_of_commands_is_fresh():
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == page(build_parser()), (
        "write it again: python tools/write_pages.py"
    )


def test_every_page_stands_in_the_menu():
    menu = set(re.findall(r"(\w+\.md)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert menu == {path.name for path in (ROOT / "docs").glob("*.md")}


def test_the_site_builds_strictly_and_asks_nobody_for_anything(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    pages = sorted(tmp_path.glob("*.html"))
    assert {"index.html", "tutorial.html", "api.html"} <= {path.name for path in pages}
    for path in pages:
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|link rel=\"stylesheet\")[^>]+(?:src|href)=\"(https?:[^\"]+)", text)
        assert loaded == [], path.name
    assert "a2mim.masking.BlockMask" in (tmp_path / "api.html").read_text(encoding="utf-8")
