"""How a command reads a hospital's images: its options, and an end that can be gone on from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from voxring.cli.progress import Progress
from voxring.cli.signals import exit_code

if TYPE_CHECKING:
    from voxring.batch import Batch
    from voxring.study import Study
    from voxring.totals import LocalTotals


def batch_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of `read_batch`, all but the state folder and the device."""
    for option in (
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            default=lambda: min(4, len(os.sched_getaffinity(0))),
            show_default="one a processor, 4 at most",
            help="Processes that read and compute; with a GPU, threads that read for it.",
        ),
        click.option(
            "--scheduler",
            metavar="ADDRESS|FILE|local|slurm",
            help="Have a Dask cluster read and compute: its address, its scheduler file, one of --workers processes "
            "on this machine, or as many Slurm jobs.",
        ),
        click.option(
            "--strict", "bad", flag_value="stop", default=None, help="End at the first row that cannot be used."
        ),
        click.option(
            "--skip-bad",
            "bad",
            flag_value="skip",
            help="Go on without rows that cannot be used; how many there are is told to the researcher, and stands in "
            "the result.  [default: go on, then list them all and send nothing]",
        ),
    ):
        command = option(command)
    return command


def read_batch(
    manifest: Path,
    study: Study,
    name: str,
    state: Path,
    *,
    device: str,
    workers: int,
    scheduler: str | None,
    bad: str | None,
    progress: Progress,
) -> Batch:
    """Reduce the images of a party, with a journal in its state folder, and say what was used.

    Why rows were left out stands beside the journal, in a file that its owner alone can read.

    Raises
    ------
    VoxringError
        As `voxring.batch.party_batch`.
    """
    from voxring.batch import Journal, party_batch

    with Journal(state, study, name) as journal:
        batch = party_batch(
            manifest,
            study,
            device=device,  # type: ignore[arg-type]  # click checks the choice
            workers=workers,
            scheduler=scheduler,
            journal=journal,
            bad=bad or "list",  # type: ignore[arg-type]  # click's flags
            progress=lambda done, total: progress.images(name, done, total),
            report=lambda row: progress.bad_row(name, row.line, row.error),
        )
    if batch.skipped:
        _keep_reasons(journal.path.with_suffix(".skipped"), batch)
    if batch.devices:
        progress(name, batch.computed())
    progress(name, batch.account())
    if batch.skipped and progress.quiet:
        click.echo(f"voxring: {name}: {batch.account()}", err=True)
    return batch


def read_again(
    manifest: Path,
    study: Study,
    name: str,
    *,
    device: str,
    workers: int,
    scheduler: str | None,
    bad: str | None,
    progress: Progress,
) -> LocalTotals:
    """Reduce the images of a party for a step. No journal: a session that has released something does not start over.

    Raises
    ------
    VoxringError
        As `voxring.batch.party_batch`.
    """
    from voxring.batch import party_batch

    batch = party_batch(
        manifest,
        study,
        device=device,  # type: ignore[arg-type]  # click checks the choice
        workers=workers,
        scheduler=scheduler,
        bad=bad or "list",  # type: ignore[arg-type]  # click's flags
        progress=lambda done, total: progress.images(name, done, total),
    )
    if batch.devices:
        progress(name, batch.computed())
    return batch.totals


def _keep_reasons(path: Path, batch: Batch) -> None:
    """Write beside the journal why rows were left out, for the operator alone: no log holds it."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.writelines(f"line {row.line}: {row.error}\n" for row in batch.skipped)


@contextmanager
def resumable() -> Iterator[None]:
    """On Ctrl-C and SIGTERM, when all that was open is closed, say how to go on, and end as their exit codes say."""
    try:
        yield
    except KeyboardInterrupt as stop:
        click.echo(
            "voxring: stopped; the images done so far are in the journal: give the same command to go on", err=True
        )
        raise SystemExit(exit_code(stop)) from None
