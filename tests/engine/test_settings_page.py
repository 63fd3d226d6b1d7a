"""The settings as people read them: the page in docs/ and what the command prints."""

import subprocess
import sys

import pytest

from a2mim.cli import main
from a2mim.engine.config import KINDS
from a2mim.engine.settings_page import PAGE, lines_of, listing, page


def test_the_page_in_the_docs_is_what_the_definitions_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m a2mim.engine.settings_page"


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_says_what_it_means_in_one_line(kind):
    lines = list(lines_of(kind))
    assert len({line.key for line in lines}) == len(lines) > 40
    for line in lines:
        assert line.meaning[0].isprintable() and line.meaning.endswith("."), line.key
        assert "\n" not in line.meaning and line.must


def test_the_command_prints_all_settings_one_group_or_one_key(capsys):
    assert main(["settings"]) == 0
    everything = capsys.readouterr().out
    assert main(["settings", "schedule"]) == 0
    group = capsys.readouterr().out
    assert main(["settings", "schedule.epochs"]) == 0
    one = capsys.readouterr().out
    assert "default 300; a whole number of at least 1" in one and "default 100;" in one
    assert "schedule.min_lr" in group and "schedule.min_lr" not in one and "optimizer" not in group
    assert all(f"  {line.key}  (" in everything for kind in KINDS for line in lines_of(kind))


def test_an_unknown_key_is_answered_with_the_nearest(capsys):
    assert main(["settings", "shedule.epoch"]) == 1
    assert "there is no setting 'shedule.epoch'; did you mean schedule.epochs" in capsys.readouterr().err
    with pytest.raises(ValueError, match="did you mean judge"):
        listing("jugde")


def test_listing_the_settings_imports_no_torch():
    code = "import sys; from a2mim.engine.settings_page import listing; listing(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
