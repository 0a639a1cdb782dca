"""How a command reads a hospital's images: its options, and an end that can be gone on from."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from voxring.cli.report import Progress

if TYPE_CHECKING:
    from voxring.batch import Batch
    from voxring.study import Study


def batch_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of `read_batch`, all but the state folder and the device."""
    for option in (
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            default=lambda: min(4, len(os.sched_getaffinity(0))),
            show_default="one a processor, 4 at most",
            help="Processes that read and compute.",
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
            help="Go on without rows that cannot be used.  [default: go on, then list them all and send nothing]",
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
            progress=lambda done, total: progress(name, f"image {done} of {total}"),
            report=lambda row: progress(f"line {row.line}", f"cannot be used: {row.error}"),
        )
    progress(name, batch.account())
    if batch.skipped and progress.quiet:
        click.echo(f"voxring: {name}: {batch.account()}", err=True)
    return batch


class _Terminated(KeyboardInterrupt):
    """SIGTERM came: what holds for Ctrl-C holds for it."""


@contextmanager
def resumable() -> Iterator[None]:
    """End on Ctrl-C and SIGTERM as their exit codes say, with all that is open closed, and a word on how to go on."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt as stop:
        number = signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT
        click.echo(
            "voxring: stopped; the images done so far are in the journal: give the same command to go on", err=True
        )
        raise SystemExit(128 + number) from None
    finally:
        signal.signal(signal.SIGTERM, before)
