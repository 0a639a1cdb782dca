"""A party's manifest becomes its LocalTotals: every image is read once, reduced and dropped.

The way of a row: the journal may know it (`journal`); else it is a task (`row`) for this process or a pool of workers
(`pool`, `cluster`), whose answer goes into the journal and into the totals. Totals are integers: neither workers nor
order nor what was known before shows in them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from voxring.batch.journal import Journal
from voxring.batch.manifest import Row, read_manifest
from voxring.batch.pool import Done, in_processes, in_this_process, in_threads
from voxring.batch.row import Task, image_totals
from voxring.devices import Device, in_words, note, takes_gpu
from voxring.errors import DeviceError, ImageError, ModelError, VoxringError
from voxring.study import Study, expect_study
from voxring.totals import LocalTotals, clipped

__all__ = [
    "BadRow",
    "Batch",
    "Journal",
    "Row",
    "image_totals",
    "party_batch",
    "party_totals",
    "read_manifest",
]

_LISTED = 20  # bad rows in an error


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why; ``error`` may name a file, and is for the operator alone."""

    line: int
    patient: str
    error: VoxringError


@dataclass(frozen=True, slots=True)
class Batch:
    """What came of a manifest.

    Parameters
    ----------
    patients : tuple of LocalTotals
        One for each patient with a row that was used, over all of its rows, clipped where the study has differential
        privacy (`voxring.totals.clipped`); ``patients`` is 1 for the classes that it has voxels of.
    images : int
        Rows that were used.
    known : int
        How many of these the journal knew.
    skipped : tuple of BadRow
        Rows that were left out, by line.
    clipped : int
        Patients that count as fewer voxels than they have, under ``privacy.voxels_per_patient``.
    devices : Counter of str
        How many images each device computed, in words as of `voxring.devices.in_words`. Two batches are equal whatever
        computed them.
    """

    patients: tuple[LocalTotals, ...]
    images: int
    known: int = 0
    skipped: tuple[BadRow, ...] = ()
    clipped: int = 0
    devices: Counter[str] = field(default_factory=Counter, compare=False)

    @property
    def totals(self) -> LocalTotals:
        """The sums over all rows that were used; ``patients`` counts those that have voxels of the class."""
        return sum(self.patients, LocalTotals())

    def computed(self) -> str:
        """Say in words what computed the images; nothing if none was computed now, or none has a voxel of a class."""
        counts = sorted(self.devices.items())
        return ", ".join(f"{count} {'image' if count == 1 else 'images'} computed on {name}" for name, count in counts)

    def account(self) -> str:
        """Say in words what was used and what was not."""
        words = f"{self.images} {'image' if self.images == 1 else 'images'} used"
        if self.known:
            words += f", {self.known} of them computed earlier"
        if self.skipped:
            patients = len({row.patient for row in self.skipped})
            words += f"; {len(self.skipped)} skipped, of {patients} {'patient' if patients == 1 else 'patients'}"
        if self.clipped:
            words += f"; {self.clipped} of {len(self.patients)} patients count as fewer voxels than they have"
        return words


def party_totals(
    manifest: str | Path,
    study: Study,
    *,
    device: Device = "cpu",
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LocalTotals:
    """Reduce all images of a party (Algorithm 1, lines 4-12): the totals of `party_batch`, which see.

    Raises
    ------
    StudyError
        The manifest is wrong.
    ImageError
        An image is; the message names manifest, line and file, and nothing is returned.
    """
    return party_batch(manifest, study, device=device, threads=threads, progress=progress).totals


def party_batch(
    manifest: str | Path,
    study: Study,
    *,
    device: Device = "cpu",
    threads: int | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    journal: Journal | None = None,
    bad: Literal["list", "stop", "skip"] = "list",
    progress: Callable[[int, int], None] = lambda done, total: None,
    report: Callable[[BadRow], None] = lambda row: None,
) -> Batch:
    """Reduce all images of a party (Algorithm 1, lines 4-12), and say which could not be used.

    Parameters
    ----------
    manifest : path
        CSV with the header ``image,ground_truth,patient``; see `read_manifest`.
    study : Study
        What is computed; with ``standardise.landmarks = "agree"``, the landmarks of the images (`voxring.landmarks`).
    device
        As in `local_totals`.
    threads : int, optional
        Of each worker; the machine's processors are shared among the workers when left out.
    workers : int
        Processes on this machine; with 1, all is done in this one. One that is killed is replaced. Where a GPU
        computes, threads of this process: one image is read and copied while others are computed, on several GPUs in
        turn.
    scheduler : str, optional
        A Dask cluster instead: an address, a scheduler file, "local" or "slurm" (extra ``cluster``).
    journal : Journal, optional
        Rows that it knows are not read again, others are added to it.
    bad : {"list", "stop", "skip"}
        A row that cannot be used is an error at the end, which lists all of them, or at once, or is left out.
    progress : callable
        Called with (rows done, rows in all).
    report : callable
        Called with each row that cannot be used, when it is found.

    Raises
    ------
    StudyError
        The manifest is wrong, or the journal cannot be written.
    ImageError
        Rows cannot be used; the message names manifest, line and file of each.
    DeviceError
        The device or the cluster does not answer.
    ModelError
        The study evaluates a model that cannot be read, or is another.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pathlib import Path
    >>> study = Study.of(name="example", classes={"lesion": 1}, window={"size": 3})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/image.npy", np.arange(16, dtype=np.int16).reshape(4, 4))
    ...     np.save(f"{folder}/truth.npy", np.eye(4, dtype=np.uint8))
    ...     manifest = Path(folder, "manifest.csv")
    ...     _ = manifest.write_text("image,ground_truth\\nimage.npy,truth.npy\\n")
    ...     party_batch(manifest, study).account()
    '1 image used'
    """
    expect_study(study)
    rows = read_manifest(manifest)
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    if study.evaluate is not None:
        from voxring.learn.evaluation import model_of

        model_of(study)
    progress(0, len(rows))
    patients: dict[str, list[LocalTotals]] = {row.patient: [] for row in rows}  # in the order of the manifest
    todo = []
    for number, row in enumerate(rows):
        known = None if journal is None else journal.find(row)
        if known is None:
            todo.append(number)
        else:
            patients[row.patient].append(known)
    done = known_rows = len(rows) - len(todo)
    if known_rows:
        progress(done, len(rows))
    skipped = []
    devices = Counter[str]()
    task = Task(study, device, threads, None if journal is None else journal.key)
    with closing(_pool(task, rows, todo, workers, scheduler)) as answers:
        for number, came in answers:
            done += 1
            if isinstance(came, VoxringError):
                if isinstance(came, DeviceError | ModelError):  # of the machine, not of the row
                    raise came
                if bad == "stop":
                    raise _located(manifest, rows[number].line, came) from came
                skipped.append(BadRow(rows[number].line, rows[number].patient, came))
                report(skipped[-1])
            else:
                if journal is not None:
                    journal.add(came)
                if came.devices:
                    devices[in_words(came.devices)] += 1
                    note(*came.devices)
                patients[rows[number].patient].append(came.totals)
            progress(done, len(rows))
    skipped.sort(key=lambda row: row.line)
    if skipped and bad == "list":
        raise _refusal(manifest, skipped, len(rows)) from skipped[0].error
    whole = [_of_one_patient(images) for images in patients.values() if images]
    bounded = tuple(clipped(patient, study) for patient in whole)
    return Batch(
        bounded,
        len(rows) - len(skipped),
        known_rows,
        tuple(skipped),
        sum(one != two for one, two in zip(whole, bounded, strict=True)),
        devices,
    )


def _pool(task: Task, rows: Sequence[Row], todo: Sequence[int], workers: int, scheduler: str | None) -> Generator[Done]:
    if scheduler is not None and todo:
        from voxring.batch.cluster import in_cluster

        return in_cluster(task, rows, todo, scheduler, workers)
    if workers > 1 and len(todo) > 1:
        return (in_threads if takes_gpu(task.device) else in_processes)(task, rows, todo, workers)
    return in_this_process(task, rows, todo)


def _of_one_patient(images: list[LocalTotals]) -> LocalTotals:
    together = sum(images, LocalTotals())
    return LocalTotals({name: replace(of, patients=int(of.voxels > 0)) for name, of in together.classes.items()})


def _located(manifest: str | Path, line: int, error: VoxringError) -> VoxringError:
    return type(error)(f"{manifest}: line {line}: {error}")


def _refusal(manifest: str | Path, bad: list[BadRow], rows: int) -> VoxringError:
    if len(bad) == 1:
        return _located(manifest, bad[0].line, bad[0].error)
    listed = "".join(f"\n  line {row.line}: {row.error}" for row in bad[:_LISTED])
    more = f"\n  and {len(bad) - _LISTED} more" if len(bad) > _LISTED else ""
    return ImageError(
        f"{manifest}: {len(bad)} of {rows} rows cannot be used, and nothing was sent: correct them and run again, or "
        f"leave them out with --skip-bad:{listed}{more}"
    )
