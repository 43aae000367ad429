"""`argprune report`: one HTML page of any set of runs, and its tables as CSV and Parquet beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from argprune.tasks.report.files import table_paths, write_tables
from argprune.tasks.report.folders import Proof, find, prove
from argprune.tasks.report.page import render
from argprune.tasks.report.tables import drop_unreadable, make_tables
from argprune.tasks.runs import write_atomic


@dataclass(frozen=True)
class Report:
    """What to report on: the options of the command line.

    runs: run directories, exports, folders of these, studies' YAML files, and files of `argprune verify criteria
    --json`. output: the page, *.html; tables go beside it. title: of the page. overwrite: replace an earlier report.
    """

    runs: Sequence[Path]
    output: Path
    title: str = "Pruning report"
    overwrite: bool = False

    def check(self) -> None:
        """Raise ValueError, in one line, unless the report may be written."""
        if self.output.suffix not in (".html", ".htm"):
            raise ValueError(f"--output {self.output}: give a file that ends in .html.")
        if self.output.is_dir():
            raise ValueError(f"Output {self.output} is a folder; give a file that ends in .html.")
        if not self.output.resolve().parent.is_dir():
            raise ValueError(f"Output {self.output}: there is no folder {self.output.resolve().parent}.")
        if self.overwrite:
            return
        for path in (self.output, *(path for both in table_paths(self.output).values() for path in both)):
            if path.exists():
                raise ValueError(f"Output {path} exists; give --overwrite to replace the report, or another name.")


def report_command(report: Report, *, quiet: bool = False) -> int:
    """Write a report and, unless quiet, say where it is; 0.

    Raises ValueError for bad input, and where there is nothing to report.
    """
    report.check()
    found = find(report.runs)
    drop_unreadable(found)
    if not (found.runs or found.exports or found.criteria):
        why = f" ({found.problems[0].place}: {found.problems[0].reason})" if found.problems else ""
        raise ValueError(f"No finished run in {', '.join(map(str, report.runs))}{why}; give folders of argprune prune.")
    proofs: dict[str, Proof] = {}
    console = Console(stderr=True)
    # Reads every model that was saved: the longest part.
    for run in track(found.runs, "certificates", console=console, disable=quiet or not console.is_terminal):
        proofs[run.name] = prove(run.path)
    tables = make_tables(found, proofs)
    page = render(found, tables, report.title, report.output)
    try:
        write_tables(report.output, tables)
        # Last: where the page is, its tables are.
        write_atomic(report.output, page)
    except OSError as error:
        raise ValueError(f"{report.output}: cannot write the report: {error.strerror}. Give another file.") from error
    if not quiet:
        held = sum(proof.state == "verified" for proof in proofs.values())
        print(f"{len(found.runs)} runs, {held} certificates verified, {len(found.problems)} places left out")
        print(f"Report: {report.output}")
    return 0
