"""What the commands print: progress on stderr, results on stdout. No value of a hospital's own is ever printed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click
import msgspec

from voxring.errors import StudyError
from voxring.study import Study
from voxring.totals import Statistics, result_document

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from voxring.session import Course


class Progress:
    """Who is doing what: one live table on a terminal, plain lines otherwise. Safe to call from any thread."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.start = time.monotonic()
        self.latest: dict[str, str] = {}
        self.live: Live | None = None

    def __enter__(self) -> Progress:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), refresh_per_second=8, get_renderable=self._table)
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def __call__(self, who: str, what: str) -> None:
        self.latest[who] = what
        if self.live is None and not self.quiet:
            click.echo(f"{time.monotonic() - self.start:6.1f} s  {who}: {what}", err=True)

    def _table(self) -> Table:
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for who, what in list(self.latest.items()):
            table.add_row(f"[bold]{who}[/]", what)
        return table


def write_result(answer: Mapping[str, Statistics | str], study: Study, out: Path) -> None:
    """Write the result file, whole or not at all.

    Raises
    ------
    StudyError
        The folder is missing or cannot be written.
    """
    document = msgspec.json.format(msgspec.json.encode(result_document(answer, study)), indent=2)
    write_whole(out, document + b"\n")


def report_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option ``--report`` of the commands that write a result."""
    return click.option(
        "--report",
        type=click.Path(path_type=Path),
        help="Where to write the report, one HTML page for a browser.  [default: beside the result, as .html]",
    )(command)


def report_path(out: Path, report: Path | None) -> Path:
    """Return where the report goes, and refuse a path that cannot be written before anybody computes for it.

    Raises
    ------
    StudyError
        The folder is missing, or the path is a folder, or that of the result.
    """
    report = report or out.with_name(f"{out.name}.html" if out.suffix == ".html" else f"{out.stem}.html")
    check_writable(report)
    if report.absolute() == out.absolute():
        raise StudyError(f"{report}: expected another file for the report than for the result: name one with --report")
    return report


def write_report(answer: Mapping[str, Statistics | str], study: Study, course: Course, report: Path) -> None:
    """Write the report of a finished study, whole or not at all.

    Raises
    ------
    StudyError
        It cannot be written.
    """
    from datetime import UTC, datetime

    from voxring.report import result_report

    page = result_report(
        result_document(answer, study),
        study,
        rings=course.rings,
        steps=course.steps,
        finished=datetime.now(UTC),
    )
    write_whole(report, page.encode())


def write_whole(out: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file, whole or not at all; a private one is for its owner alone.

    Raises
    ------
    StudyError
        The folder is missing or cannot be written.
    """
    partial = out.with_name(f".{out.name}.partial")
    try:
        with open(partial, "wb", opener=_owners_alone if private else None) as file:
            file.write(content)
        partial.replace(out)
    except OSError as error:
        raise StudyError(f"{out}: the result cannot be written: {error.strerror}") from None


def _owners_alone(path: str, flags: int) -> int:
    """Open a file that nobody else can read at any moment, also where one lay there."""
    Path(path).unlink(missing_ok=True)
    return os.open(path, flags, 0o600)


def check_writable(out: Path) -> None:
    """Refuse a result path that cannot be written before anybody computes for it.

    Raises
    ------
    StudyError
        The folder is missing, or the path is a folder.
    """
    if out.is_dir() or not out.parent.is_dir():
        raise StudyError(f"{out}: expected a file in a folder that exists: make the folder, or write elsewhere")


def print_table(answer: Mapping[str, Statistics | str], *, err: bool = False) -> None:
    """Print class, voxels, mean and sigma."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    table.add_column("class")
    for title in ("voxels", "mean", "sigma"):
        table.add_column(title, justify="right")
    for name, one in answer.items():
        if isinstance(one, str):
            table.add_row(name, "withheld", one, "")
        else:
            table.add_row(name, f"{one.voxels:,}", f"{float(one.mean):.6f}", f"{one.std:.6f}")
    Console(stderr=err, highlight=False).print(table)
