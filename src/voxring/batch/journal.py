"""What a party has computed so far, in a file of its own: a batch that was killed goes on where it stopped.

Append-only, one line for each row that is done: a checksum, then JSON with the files that the row's totals were made of
(`voxring.batch.contents`) and the totals. A line that was cut short by a kill, or damaged, does not fit its checksum
and is passed over: its row is computed again, as is one of which a file has changed. Nothing is forced to the disk:
a line that a power failure loses costs the reading of its row, no more.

The numbers in it are the hospital's own. The file is readable by its owner alone (0600), stays in the party's state
folder, and nothing of it is ever sent.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import msgspec

from voxring.batch.contents import Known, Recorded, same_at_a_glance, same_content
from voxring.batch.manifest import Row
from voxring.batch.row import VERSION, Answer
from voxring.errors import StudyError
from voxring.images import identify
from voxring.study import Study
from voxring.totals import ClassTotals, LocalTotals

_SUM_DIGITS = 16


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    """The first line. ``key`` is the content hash's; ``of`` says which totals the lines hold."""

    journal: int
    of: str
    key: str


class _Line(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A row that is done: of each class the voxels, sum, total and squares, and its additive statistics, in decimal."""

    image: tuple[Recorded, ...]
    ground_truth: tuple[Recorded, ...]
    totals: dict[str, tuple[str, str, str, str]]
    statistics: dict[str, tuple[str, ...]] = {}


def totals_digest(study: Study) -> str:
    """SHA-256 of what totals depend on: classes, window, standardisation, the bound on intensities, features, additive
    statistics, the model that is evaluated, and this version. Where parties agree on landmarks, it is of what these
    depend on, and then of the scale that was agreed.

    Parties, keys and what is released may change without an image being read again.
    """
    tables = msgspec.json.decode(study.canonical())  # without what the study does not use
    depends_on = ["classes", "standardise"]
    if not study.agrees:
        depends_on += ["window", "feature", "statistics", "evaluate"]
    kept = {name: tables[name] for name in depends_on if name in tables}
    return hashlib.sha256(
        msgspec.json.encode({**kept, "intensity": study.intensity_bound, "version": VERSION}, order="sorted")
    ).hexdigest()


class Journal:
    """The journal of one party and study, under its state folder; a context manager.

    Parameters
    ----------
    state : path
        The party's state folder.
    study : Study
        What is computed.
    party : str
        Whose images they are.

    Raises
    ------
    StudyError
        The file cannot be read or written, or is something else.
    """

    def __init__(self, state: str | Path, study: Study, party: str) -> None:
        self._of = totals_digest(study)
        self.path = Path(state) / "journals" / f"{self._of}-{party}.journal"
        self._quick: dict[tuple[object, object], _Line] = {}
        self._sized: dict[tuple[int, int], list[_Line]] = defaultdict(list)
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self.path.exists():
                self._begin()
            content = self.path.read_bytes()
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            if not content.endswith(b"\n"):
                os.write(self._file, b"\n")
        except OSError as error:
            raise StudyError(
                f"{self.path}: the journal cannot be kept: {error.strerror}: make room, or choose --state"
            ) from None
        self.key = self._read(content)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def find(self, row: Row) -> LocalTotals | None:
        """Return the totals of a row that is done and whose files are as they were, or None."""
        try:
            image, truth = identify(row.image), identify(row.ground_truth)
        except OSError:
            return None  # said when it is read
        line = self._quick.get((image, truth))
        if (
            line is not None
            and same_at_a_glance(line.image, row.image)
            and same_at_a_glance(line.ground_truth, row.ground_truth)
        ):
            return _totals(line)
        known: Known = {}
        for line in reversed(self._sized.get((image[1], truth[1]), [])):
            if same_content(line.ground_truth, row.ground_truth, self.key, known) and same_content(
                line.image, row.image, self.key, known
            ):
                return _totals(line)
        return None

    def add(self, answer: Answer) -> None:
        """Note that a row is done.

        Raises
        ------
        StudyError
            It cannot be written.
        """
        totals = {
            name: (str(of.voxels), str(of.sum), str(of.total), str(of.squares))
            for name, of in answer.totals.classes.items()
        }
        statistics = {
            name: tuple(map(str, of.statistics)) for name, of in answer.totals.classes.items() if of.statistics
        }
        line = _Line(answer.image, answer.ground_truth, totals, statistics)
        self._note(line)
        try:
            _append(self._file, msgspec.json.encode(line))
        except OSError as error:
            raise StudyError(f"{self.path}: the journal cannot be written: {error.strerror}: make room") from None

    def _begin(self) -> None:
        """Write the header, whole or not at all; where another run was quicker, its header stands."""
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _append(file, msgspec.json.encode(_Header(1, self._of, secrets.token_hex(32))))
            with suppress(FileExistsError):
                os.link(partial, self.path)
        finally:
            os.close(file)
            partial.unlink()

    def _read(self, content: bytes) -> bytes:
        first, *others = content.split(b"\n")
        try:
            header = msgspec.json.decode(_checked(first), type=_Header)
            key = bytes.fromhex(header.key)
        except ValueError:  # msgspec's errors are ValueErrors too
            header, key = None, b""
        if header is None or (header.journal, header.of, len(key)) != (1, self._of, 32):
            raise StudyError(
                f"{self.path}: expected the journal of this study, got something else: remove it; what was in it is "
                "computed again"
            )
        for line in others:
            with suppress(ValueError):
                self._note(msgspec.json.decode(_checked(line), type=_Line))
        return key

    def _note(self, line: _Line) -> None:
        if not (line.image and line.ground_truth):
            return
        image, truth = line.image[0].identity, line.ground_truth[0].identity
        self._quick[image, truth] = line
        self._sized[image[1], truth[1]].append(line)


def _append(file: int, payload: bytes) -> None:
    """Write a line in one go: two runs at once do not mix theirs."""
    line = _sum(payload) + b" " + payload + b"\n"
    if os.write(file, line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _checked(line: bytes) -> bytes:
    """Return what a line holds, or ValueError."""
    given, _, payload = line.partition(b" ")
    if given != _sum(payload):
        raise ValueError("a line does not fit its checksum")
    return payload


def _sum(payload: bytes) -> bytes:
    return hashlib.sha256(payload).hexdigest()[:_SUM_DIGITS].encode()


def _totals(line: _Line) -> LocalTotals:
    classes = {}
    for name, texts in line.totals.items():
        voxels, total, intensities, squares = map(int, texts)
        statistics = tuple(map(int, line.statistics.get(name, ())))
        classes[name] = ClassTotals(voxels, total, intensities, squares, int(voxels > 0), statistics)
    return LocalTotals(classes)
