"""`a2mim report`: the HTML page of one run, or of several side by side."""

from __future__ import annotations

from pathlib import Path

from a2mim.commands.arguments import add_debug


def add_report(commands) -> None:
    p = commands.add_parser("report", help="writes the HTML report of one run, or of several side by side")
    p.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run, also of one that was killed, or a copy")
    p.add_argument("--out", help="the HTML file (default: report.html in the run's folder; needed for several runs)")
    add_debug(p)
    p.set_defaults(run=run_report)


def run_report(chosen) -> None:
    from a2mim.files import write_text
    from a2mim.report import read_run
    from a2mim.report.page import render
    from a2mim.report.pairs import comparisons

    if chosen.out is None and len(chosen.runs) > 1:
        raise ValueError(f"{len(chosen.runs)} runs were given: add --out FILE.html, the file to write.")
    out = Path(chosen.out) if chosen.out else Path(chosen.runs[0]) / "report.html"
    if chosen.out:
        out.parent.mkdir(parents=True, exist_ok=True)
    runs = [read_run(folder) for folder in chosen.runs]
    compared = comparisons(runs)
    write_text(out, render(runs, compared))
    chosen.result = {"report": out, "comparisons": compared}
    print("\n".join([*compared, f"report  {out}"]))
