"""What a run is shown as: one page without scripts from elsewhere, its charts, and pages that compare runs."""

from fedkd.report.report import render, write_report

__all__ = ["render", "write_report"]
