"""The results that commands write and print. No value of a hospital's own is among them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from voxring.errors import StudyError
from voxring.result import Result, write_whole
from voxring.totals import Statistics

if TYPE_CHECKING:
    from voxring.evaluate import Counts, Region
    from voxring.session import Course
    from voxring.study import Study


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


def write_report(result: Result, course: Course, report: Path) -> None:
    """Write the report of a finished study, whole or not at all.

    Raises
    ------
    StudyError
        It cannot be written.
    """
    from datetime import UTC, datetime

    from voxring.report import result_report

    page = result_report(
        result.document, result.study, rings=course.rings, steps=course.steps, finished=datetime.now(UTC)
    )
    write_whole(report, page.encode())


def check_writable(out: Path, *inputs: Path) -> None:
    """Refuse a result path that cannot be written before anybody computes for it.

    Raises
    ------
    StudyError
        The folder is missing, or the path is a folder, or that of an input, such as the study.
    """
    if out.exists() and any(one.exists() and out.samefile(one) for one in inputs):
        raise StudyError(f"{out}: expected another file than one that is read: write elsewhere")
    if out.is_dir() or not out.parent.is_dir():
        raise StudyError(f"{out}: expected a file in a folder that exists: make the folder, or write elsewhere")


def warn_of_axes(study: Study) -> None:
    """Say so where a model cannot tell whether an image has as many axes as those that it was trained on."""
    if study.blurs_axes:
        from voxring.learn.model import EITHER

        click.echo(f"warning: {EITHER}", err=True)


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


def print_statistics(result: Result) -> None:
    """Print a few of the additive statistics that the study asks for, if it does; the result file holds all."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from voxring.result import few_of

    counts = result.evaluation
    if counts is not None:
        print_scores(counts, "labelled", {name for name, one in result.answer.items() if isinstance(one, str)})
    rows = {name: few_of(one) for name, one in result.statistics.items()}
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


def print_scores(counts: Counts, region: Region, withheld: Collection[str] = ()) -> None:
    """Print a row for each class, of an evaluation; those that are withheld have none."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    def shown(ratio: object) -> str:
        return "–" if ratio is None else f"{float(ratio):.4f}"  # type: ignore[arg-type]

    table = Table(box=SIMPLE_HEAD, pad_edge=False)  # fits 80 columns
    table.add_column("class")
    for title in ("voxels", "Dice", "sensitivity", "specificity", "AUC", "miscalibrated"):
        table.add_column(title, justify="right")
    for name in (name for name in counts.classes if name not in withheld):
        outcomes = counts.outcomes(name, region)
        table.add_row(
            name,
            f"{outcomes.tp + outcomes.fn:,}",
            shown(outcomes.dice),
            shown(outcomes.sensitivity),
            shown(outcomes.specificity),
            shown(counts.roc(name, region).auc),
            shown(counts.calibration(name, region).error),
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(f"accuracy over {counts.voxels:,} labelled voxels: {shown(counts.accuracy())}")


def print_noise(document: Mapping[str, Any]) -> None:
    """Say that the numbers are noisy, where they are, and how far off n and mean may be."""
    table = document.get("differential_privacy")
    if table is None:
        return
    click.echo(f"All numbers are noisy: {table['mechanism']}, epsilon {table['epsilon']:g}, delta {table['delta']:g}.")
    for name, one in document["classes"].items():
        if "noise" in one:
            (few, many), (low, high) = one["noise"]["voxels_interval"], one["noise"]["mean_interval"]
            click.echo(
                f"{name}: without noise, {few:,} to {many:,} voxels and a mean of {low:.6f} to {high:.6f}, each at "
                f"{table['level']:.0%}"
            )
