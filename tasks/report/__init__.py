"""`argprune report`: runs, exports and checks of criteria as one page, with tables beside it."""

from argprune.tasks.report.command import Report, report_command

__all__ = ["Report", "report_command"]
