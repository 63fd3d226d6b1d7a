"""The HTML report of a run, or of several side by side. It reads what others wrote and computes nothing."""

from a2mim.report.page import brief, render, write_report
from a2mim.report.records import RunRecord, read_run

__all__ = ["RunRecord", "brief", "read_run", "render", "write_report"]
