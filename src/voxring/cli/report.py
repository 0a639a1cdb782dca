"""The results that commands write and print. No value of a hospital's own is among them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from voxring.errors import StudyError
from voxring.study import Study
from voxring.totals import Statistics, result_document


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


def write_whole(out: Path, content: bytes) -> None:
    """Write a file, whole or not at all.

    Raises
    ------
    StudyError
        The folder is missing or cannot be written.
    """
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(out)
    except OSError as error:
        raise StudyError(f"{out}: the result cannot be written: {error.strerror}") from None


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
