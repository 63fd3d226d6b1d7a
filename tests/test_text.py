"""Names from files cannot move a terminal's cursor, begin a line, or leave the quotes that they stand in."""

import io
import sys

import pytest
import yaml

from a2mim.cli import main
from a2mim.text import LONGEST, PrintableStream, code_span, one_line, shortened, yaml_value

HOSTILE = [
    "\x1b[2J\x1b[H",
    "a\r\nerror: forged",
    "\u202egpj.exe",
    "\x00\x07\x9b",
    "a\u2028b\u2029c",
    "\udce9",
    "\x1b]0;x\x07",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_name_is_one_printable_line(text):
    for made in (one_line(text), shortened(text), code_span(text), yaml_value(text)):
        assert made.isprintable()
    assert one_line("flowers – été 花") == "flowers – été 花"


def test_what_is_long_is_cut_in_the_middle():
    assert len(shortened("x" * 10_000)) <= LONGEST + 3


@pytest.mark.parametrize("text", ["`", "``a```", "`a", "", "<b>", "a`b"])
def test_a_code_span_ends_where_its_text_ends(text):
    span = code_span(text)
    ticks = span[: len(span) - len(span.lstrip("`"))]
    inner = span[len(ticks) : -len(ticks)]
    assert span.startswith(ticks) and span.endswith(ticks) and ticks not in inner
    assert not inner.startswith("`") and not inner.endswith("`")


@pytest.mark.parametrize("text", ["mit", "cc-by-4.0", "no", "- x", "a: b", "x\n---\ny", "null", "1.0", '"', "#c"])
def test_a_yaml_value_is_read_back_as_the_text(text):
    assert yaml.safe_load(f"license: {yaml_value(text)}") == {"license": one_line(text)}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_stream_escapes_all_but_line_breaks(text):
    out = io.StringIO()
    print(text, "a\tb", file=PrintableStream(out))
    assert all(c.isprintable() or c in "\n\t" for c in out.getvalue())


def test_an_error_of_the_command_is_one_line_whatever_the_name(capsys):
    assert main(["verify", "no\x1b[2J\nerror: all is well\u202e"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error[:-1].isprintable()
    assert sys.stdout is not None
