"""Writes the pages that are derived from the code: python tools/write_pages.py"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a checkout runs without being installed

from a2mim.cli import build_parser
from a2mim.commands.page import page as commands_page
from a2mim.engine.settings_page import page as settings_page
from a2mim.files import write_text

if __name__ == "__main__":
    docs = Path(__file__).resolve().parents[1] / "docs"
    write_text(docs / "commands.md", commands_page(build_parser()))
    write_text(docs / "settings.md", settings_page())
