"""The `a2mim` command; tools/*.py are its thin doors. Nothing heavy is imported before the arguments are understood."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator

import shtab

from a2mim.commands.analyze import add_analyze
from a2mim.commands.arguments import join_sizes
from a2mim.commands.data import add_bench_data, add_measure_stats
from a2mim.commands.embed import add_embed
from a2mim.commands.evaluate import add_compare, add_evaluate, add_knn, add_linear_probe
from a2mim.commands.export import add_export, add_verify
from a2mim.commands.finetune import add_finetune
from a2mim.commands.help import dress
from a2mim.commands.models import add_check_model
from a2mim.commands.output import as_json
from a2mim.commands.pretrain import add_pretrain
from a2mim.commands.recipes import add_recipes
from a2mim.commands.refine import add_refine
from a2mim.commands.report import add_report
from a2mim.commands.settings import add_settings
from a2mim.commands.shards import add_shards
from a2mim.commands.training import join_resume
from a2mim.commands.version import version_text
from a2mim.commands.worth_it import add_worth_it
from a2mim.data.remote.addresses import public_name
from a2mim.engine.memory import OutOfMemory, is_out_of_memory
from a2mim.files import DiskFull, is_full_disk
from a2mim.processes.errors import is_shared, refuse_several, started_as
from a2mim.text import PrintableStream, first_line, one_line

# OpenMP's threads spin while they wait for one another. Long spinning is fastest on an idle machine and ruinous beside
# any other busy process, sleeping at once is slow on both; this short spin is near the best of each
# (docs/performance.md).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

COMMANDS = (
    *(add_pretrain, add_finetune, add_refine, add_evaluate, add_compare, add_knn, add_linear_probe),
    *(add_export, add_verify, add_embed, add_shards, add_measure_stats, add_bench_data, add_check_model, add_report),
    add_analyze,
    *(add_recipes, add_settings, add_worth_it),
)
_LONGEST = 2000  # characters of a message
USER_ERRORS = (ValueError, OSError, FloatingPointError)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 1 for bad input in one sentence, 128 + n after signal n."""
    words = sys.argv[1:] if arguments is None else arguments
    with _escaped_output():
        try:
            chosen = _parsed(join_sizes(join_resume(words)))
        except BrokenPipeError:
            return _nobody_reads()
        return _run(chosen)


def _parsed(words: list[str]) -> argparse.Namespace:
    try:
        return build_parser().parse_args(words)
    except SystemExit:  # --help, --version and --print-completion have printed
        sys.stdout.flush()
        raise


def _run(chosen: argparse.Namespace) -> int:
    before, silent = warnings.formatwarning, _is_silent(chosen)
    if not chosen.debug:
        warnings.formatwarning = lambda message, *_, **__: "" if silent else f"warning: {_told(message)}\n"
    try:
        with contextlib.redirect_stdout(_output(chosen, silent)):
            if getattr(chosen, "several", None) is None:
                refuse_several(f"a2mim {chosen.command}")
            status = chosen.run(chosen) or 0
        if chosen.json and not silent:
            print(as_json(getattr(chosen, "result", None)), flush=True)
        return status
    except BrokenPipeError:
        return _nobody_reads()
    except USER_ERRORS as error:
        if chosen.debug:
            raise
        if not (is_shared(error) and started_as()[0]):  # the first process says it for all
            print(f"error: {_told(_sentence(error))}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if chosen.debug or not is_out_of_memory(error):
            raise
        too_little = f"too little memory; try a smaller batch ({first_line(error)})"
        said = str(error) if isinstance(error, OutOfMemory) else too_little
        print(f"error: {_told(said)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted outside training; checkpoints that were written are whole", file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = before  # a program that calls this function keeps its own


def _is_silent(chosen: argparse.Namespace) -> bool:
    """Whether this process only helps another one, which says everything."""
    return getattr(chosen, "several", None) == "share" and started_as()[0] > 0


def _output(chosen: argparse.Namespace, silent: bool) -> io.TextIOBase:
    """Where the command prints to; with --json, the result alone goes to the standard output."""
    return io.StringIO() if silent else PrintableStream(sys.stderr if chosen.json else sys.stdout)


def _sentence(error: Exception) -> str:
    """The message; of the system's own errors, the file and what is wrong with it, without a number."""
    if isinstance(error, OSError) and not isinstance(error, DiskFull) and is_full_disk(error):
        return f"{error.filename or 'a file'} cannot be written, the disk is full: make room, and run the command again"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _told(said: object) -> str:
    """A message on one printable line of bearable length, without secrets; names in it may come from a file."""
    line = one_line(public_name(str(said)))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"


def _nobody_reads() -> int:
    """The status where the reader of the output has gone, as in `| head`: no error.

    What is still to be written goes nowhere, so that the interpreter's last flush does not fail.
    """
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


@contextlib.contextmanager
def _escaped_output() -> Iterator[None]:
    """Escapes characters that the encoding of the output lacks (Latin-1, a Windows code page), during one command.

    Otherwise the first such character would end the command and lose its result.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            if not stream.closed:
                stream.reconfigure(errors=errors)


class PrintVersion(argparse.Action):
    """Collects the versions only when they are asked for."""

    def __init__(self, option_strings, dest, help=None):
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser, namespace, values, option_string=None):
        print(version_text())
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="a2mim", description="Masked-image-modelling pre-training for any architecture."
    )
    parser.add_argument("--version", action=PrintVersion, help="versions and machine, for a bug report")
    shtab.add_argument_to(parser, "--print-completion", help="what bash, zsh or tcsh need to complete a2mim's commands")
    commands = parser.add_subparsers(metavar="command", dest="command", required=True)
    for add in COMMANDS:
        add(commands)
    dress(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
