"""The help, the JSON and the exit codes of every command. The commands are enumerated from the parser."""

import json
import shlex

import numpy as np
import pytest

from a2mim.cli import build_parser, main
from a2mim.commands.arguments import join_sizes
from a2mim.commands.help import EXAMPLES, commands_of, help_of
from a2mim.commands.output import as_json

PARSERS = dict(commands_of(build_parser()))


def test_every_command_has_an_example_and_every_example_a_command():
    assert set(PARSERS) == set(EXAMPLES)


@pytest.mark.parametrize("name", PARSERS)
def test_the_help_of_a_command_groups_its_options_and_ends_with_an_example_that_parses(name):
    text = PARSERS[name].format_help()
    assert text.rstrip().endswith(f"example:\n  {EXAMPLES[name]}")
    program, *words = shlex.split(EXAMPLES[name])
    chosen = build_parser().parse_args(join_sizes(words))
    assert program == "a2mim" and callable(chosen.run)
    assert "\nwhat is written:\n" in text
    long = [a for a in PARSERS[name]._actions if a.option_strings]
    assert len(long) < 10 or text.count(":\n  -") >= 3, "options in groups"


@pytest.mark.parametrize("name", PARSERS)
def test_every_option_tells_its_default(name):
    for action in PARSERS[name]._actions:
        default = action.default
        if not action.option_strings or default is None or isinstance(default, bool) or default in ([], "==SUPPRESS=="):
            continue
        shown = f"{default:g}" if isinstance(default, float) else str(default)
        shown = ", ".join(default) if isinstance(default, list) else shown
        assert f"({shown})" in help_of(action) or "(default" in help_of(action), action.option_strings
        assert help_of(action) % vars(action)


def test_json_of_a_list_is_all_that_is_on_standard_output(capsys):
    """Every command that does work: test_json.py."""
    assert main(["evaluate", "--list", "--json"]) == 0
    assert "dino-knn" in json.loads(capsys.readouterr().out)


def test_a_mistake_leaves_standard_output_empty(capsys):
    assert main(["embed", "test_vit", "nowhere", "--out", "x.npz", "--json"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ")


def test_json_has_no_numbers_that_json_does_not_have():
    assert json.loads(as_json({"a": float("nan"), "b": np.arange(2), "c": (1, None)})) == {
        "a": None, "b": [0, 1], "c": [1, None],
    }  # fmt: skip


def test_the_exit_codes_are_those_that_the_page_of_commands_states(tmp_path, capsys):
    assert main(["settings", "seed"]) == 0
    assert main(["settings", "sede"]) == 1  # bad input
    with pytest.raises(SystemExit) as ended:
        main(["settings", "--what"])
    assert ended.value.code == 2  # a command line that cannot be understood
