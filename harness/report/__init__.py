"""The report of a run: one HTML file with words, tables, charts and maps that opens without a network."""

from harness.report.writing import write_report

__all__ = ["write_report"]
