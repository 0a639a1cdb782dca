"""The results that commands write and print. No value of a hospital's own is among them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click
import msgspec

from voxring.errors import StudyError
from voxring.study import Study
from voxring.totals import Statistics, result_document

if TYPE_CHECKING:
    from voxring.session import Course


def write_result(
    answer: Mapping[str, Statistics | str], study: Study, out: Path, skipped: Mapping[str, int] = MappingProxyType({})
) -> None:
    """Write the result file, whole or not at all; ``skipped`` are the parties that left images out, and how many.

    Raises
    ------
    StudyError
        The folder is missing or cannot be written.
    """
    document = msgspec.json.format(msgspec.json.encode(result_document(answer, study, skipped)), indent=2)
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


def write_report(
    answer: Mapping[str, Statistics | str],
    study: Study,
    course: Course,
    report: Path,
    skipped: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Write the report of a finished study, whole or not at all.

    Raises
    ------
    StudyError
        It cannot be written.
    """
    from datetime import UTC, datetime

    from voxring.report import result_report

    page = result_report(
        result_document(answer, study, skipped),
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


def print_statistics(answer: Mapping[str, Statistics | str], study: Study) -> None:
    """Print a few of the additive statistics that the study asks for, if it does; the result file holds all."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from voxring.statistics import derived

    found = {name: derived(one.additive, one.voxels, study) for name, one in answer.items() if not isinstance(one, str)}
    rows = {name: _few(one) for name, one in found.items()}
    titles = dict.fromkeys(title for row in rows.values() for title in row)
    if not titles:
        return
    table = Table(box=SIMPLE_HEAD)
    table.add_column("class")
    for title in titles:
        table.add_column(title, justify="right")
    for name, row in rows.items():
        table.add_row(name, *("" if row[title] is None else f"{row[title]:.6g}" for title in titles))
    Console(highlight=False).print(table)


def _few(derived: Mapping[str, Any]) -> dict[str, float | None]:
    first = derived.get("first_order", {})
    texture = derived.get("glcm", {}).get("haralick", {})
    shown = [(first, ("median", "skewness", "kurtosis", "entropy")), (texture, ("contrast", "correlation"))]
    return {title: of[title] for of, titles in shown for title in titles if title in of}
