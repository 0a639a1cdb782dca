"""How a command reads a hospital's images: its options, and an end that can be gone on from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
    """Options of `Reading`, all but the device."""
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


def device_options(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Where a command computes ``what``, and with how many threads."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        command = click.option("--threads", type=click.IntRange(min=1), help="Threads; all processors when left out.")(
            command
        )
        return click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
            help=f"Where to compute; every device gives the same {what}.",
        )(command)

    return add


@dataclass(frozen=True, slots=True)
class Reading:
    """How the images of a party are read, as its operator said."""

    manifest: Path
    name: str
    device: str
    workers: int
    scheduler: str | None
    bad: str | None
    progress: Progress

    def kept(self, study: Study, state: Path) -> Batch:
        """Reduce the images with a journal in the party's state folder, and say what was used.

        Why rows were left out stands beside the journal, in a file that its owner alone can read.

        Raises
        ------
        VoxringError
            As `voxring.batch.party_batch`.
        """
        from voxring.batch import Journal

        with Journal(state, study, self.name) as journal:
            batch = self._batch(
                study,
                journal=journal,
                report=lambda row: self.progress.bad_row(self.name, row.line, row.error),
            )
        if batch.skipped:
            _keep_reasons(journal.path.with_suffix(".skipped"), batch)
        self.progress(self.name, batch.account())
        if batch.skipped and self.progress.quiet:
            click.echo(f"voxring: {self.name}: {batch.account()}", err=True)
        return batch

    def again(self, study: Study) -> LocalTotals:
        """Reduce the images for a step. No journal: a session that has released something does not start over.

        Raises
        ------
        VoxringError
            As `voxring.batch.party_batch`.
        """
        return self._batch(study).totals

    def _batch(self, study: Study, **more: Any) -> Batch:
        from voxring.batch import party_batch

        batch = party_batch(
            self.manifest,
            study,
            device=self.device,  # type: ignore[arg-type]  # click checks the choice
            workers=self.workers,
            scheduler=self.scheduler,
            bad=self.bad or "list",  # type: ignore[arg-type]  # click's flags
            progress=lambda done, total: self.progress.images(self.name, done, total),
            **more,
        )
        if batch.devices:
            self.progress(self.name, batch.computed())
        return batch


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
