"""Flags that every command spells alike: a repeated one never loses what was said before."""

import argparse

import pytest

from a2mim.cli import build_parser

ONE_VALUE = {"--img-size", "--value-range"}  # a pair of numbers, not a list


def commands(parser=None, name="a2mim"):
    """(name, parser) of every command, those inside a command too."""
    parser = parser or build_parser()
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub, inner in action.choices.items():
                yield from commands(inner, f"{name} {sub}")


LISTS = [
    (name, action.option_strings[-1])
    for name, parser in commands()
    for action in parser._actions
    if action.option_strings and (action.nargs in ("+", "*") or isinstance(action.default, list))
]


@pytest.mark.parametrize(("name", "flag"), LISTS)
def test_a_repeated_flag_adds_to_the_earlier_one(name, flag):
    if flag in ONE_VALUE:
        return
    parser = dict(commands())[name]
    (action,) = [action for action in parser._actions if flag in action.option_strings]
    chosen = argparse.Namespace(**{action.dest: action.default})
    for value in (["a=1"], ["b=2", "c=3"]):
        given = value if action.nargs else ",".join(value)
        action(parser, chosen, given, flag)
    assert getattr(chosen, action.dest) == ["a=1", "b=2", "c=3"]
    assert action.default in (None, [], ["dino-knn"], ["timm"])


def test_there_are_such_flags_in_many_commands():
    assert {("a2mim evaluate", "--set"), ("a2mim evaluate", "--protocol"), ("a2mim export", "--to")} <= set(LISTS)


def test_both_settings_of_a_repeated_set_reach_the_command():
    chosen = build_parser().parse_args(
        ["evaluate", "x", "--set", "k=3", "--set", "logreg.c_values=1", "--set", "a=1", "b=2"]
    )
    assert chosen.set == ["k=3", "logreg.c_values=1", "a=1", "b=2"]
    assert build_parser().parse_args(["evaluate", "x"]).protocol == []  # those that suit the images
