"""Where a party keeps the coin of a study, so that every run of it has the same rings.

One file for each study and party, ``coins/DIGEST-PARTY.json`` in the state folder, readable by its owner alone: not
because it is a secret from the other parties, who all have it, but because whoever changes it stops the study.

Theory of operation
-------------------
Rings must not change once they were used: what a coalition learns are sums over the parts into which it splits the
others, and with two sets of rings it could intersect them. A session may die while only some parties have kept a new
coin; the others would draw another, which the first must refuse, and somebody would have to copy files. So a coin is
kept in two steps:

    pending   kept when it is drawn, in ``DIGEST-PARTY.pending.json``; another may take its place
    used      before the first message under it that depends on the party's numbers leaves; never changed after that

A party that is greeted tells the coin that it keeps, and if that is pending, also commits to a part of a new one. If
all keep the same, it is used, whoever has it pending. If not, and every party has committed, all draw anew. A party
whose coin is used commits to none, so then nothing is drawn, and the session ends with what is to be copied from whom.

Why that is safe. All that anybody learns of a party's numbers comes from the messages that this party sends, in which
they stand under its own shares and another's blind (Section 4); no other's message depends on them but through these.
Each party by itself sees to it that all messages that it ever sends under a study have the same rings: it marks the
coin as used, on the disk, before the first of them, and from then on takes part under no other. A coin that it gives up
is one under which it has sent nothing. So the views of all others are those of runs in which only the last coin was
ever drawn, and the proof for fixed rings holds as it is. It does not matter who else had kept the coin that was given
up, nor what the researcher says of the others.

To draw again gives nobody more choice than there was: whoever dislikes a coin could always break the session off when
all parts were open and no coin was kept yet (`voxring.ring.coin`). Each party says on its screen when it draws anew.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from voxring.errors import StudyError
from voxring.ring.coin import COIN_BYTES
from voxring.study import Study

Hex = Annotated[str, msgspec.Meta(pattern=f"^[0-9a-f]{{{2 * COIN_BYTES}}}$")]


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    """The file: the coin and the study that it belongs to; the same at every party, so one can be copied to another."""

    digest: Hex
    coin: Hex


def state_folder() -> Path:
    """Return the folder that the commands use: ``voxring`` in $XDG_STATE_HOME or ~/.local/state."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "voxring"


@dataclass(frozen=True)
class Coin:
    """A coin that a party keeps, and whether it has been used; if not, another may take its place."""

    value: bytes
    used: bool


class CoinFile:
    """The files with the coin of one study and party, under a state folder.

    Examples
    --------
    >>> import tempfile
    >>> study = Study.of(name="liver", classes={"lesion": 1}, party=[{"name": n} for n in "abc"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = CoinFile(folder, study, "a")
    ...     file.keep(bytes(32))
    ...     file.read().used, CoinFile(folder, study, "b").read()
    ...     file.use(bytes(32))
    ...     file.read().used
    (False, None)
    True
    """

    def __init__(self, state: str | Path, study: Study, party: str) -> None:
        self.digest = study.digest
        self.path = Path(state) / "coins" / f"{study.digest}-{party}.json"
        self.pending = self.path.with_suffix(".pending.json")

    def read(self) -> Coin | None:
        """Return the coin, or None if none is kept; make sure that one could be.

        Raises
        ------
        StudyError
            A file is not as it was written, or cannot be read, or the folder cannot be written to.
        """
        used = self._read(self.path, _COPY)
        if used is not None:
            return Coin(used, used=True)
        pending = self._read(self.pending, "delete it, it was never used")
        return None if pending is None else Coin(pending, used=False)

    def keep(self, coin: bytes) -> None:
        """Keep a coin as pending, whole or not at all, and on the disk before this returns.

        Raises
        ------
        StudyError
            It cannot be written, or another run uses a coin.
        """
        if self.path.exists():
            raise self._another()
        self._write(coin, lambda partial: os.replace(partial, self.pending))

    def use(self, coin: bytes) -> None:
        """Keep a coin as used, whole or not at all, and on the disk before this returns; it is never changed then.

        Raises
        ------
        StudyError
            It cannot be written, or another run uses another coin.
        """
        try:
            # Unlike a rename, a link fails where another run was quicker.
            self._write(coin, lambda partial: os.link(partial, self.path))
        except FileExistsError:
            if self._read(self.path, _COPY) != coin:
                raise self._another() from None
        with suppress(OSError):  # the other file counts, whether this one is there or not
            self.pending.unlink()

    def _another(self) -> StudyError:
        return StudyError(f"{self.path}: another run has kept a coin meanwhile: run one at a time")

    def _read(self, path: Path, remedy: str) -> bytes | None:
        try:
            kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
        except (FileNotFoundError, NotADirectoryError):
            self._make_folder()
            return None
        except OSError as error:
            raise StudyError(f"{path}: the coin cannot be read: {error.strerror}") from None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise StudyError(f"{path}: expected the coin of a study, got something else: {remedy}") from None
        if kept.digest != self.digest:
            raise StudyError(
                f"{path}: expected the coin of study {self.digest[:12]}, got that of {kept.digest[:12]}: {remedy}"
            )
        return bytes.fromhex(kept.coin)

    def _write(self, coin: bytes, place: Callable[[Path], None]) -> None:
        self._make_folder()
        try:
            # A name of its own, so that what a killed process left is in nobody's way.
            handle, name = tempfile.mkstemp(prefix=".", suffix=".partial", dir=self.path.parent)
        except OSError as error:
            raise StudyError(f"{self.path}: the coin cannot be kept: {error.strerror}") from None
        partial = Path(name)
        try:
            with open(handle, "wb") as file:
                file.write(msgspec.json.encode(_Kept(self.digest, coin.hex())) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            place(partial)
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the name, too, is there after a power failure
            finally:
                os.close(folder)
        except FileExistsError:
            raise
        except OSError as error:
            raise StudyError(f"{self.path}: the coin cannot be kept: {error.strerror}") from None
        finally:
            with suppress(FileNotFoundError):
                partial.unlink()

    def _make_folder(self) -> None:
        folder = self.path.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(
                f"{folder}: no coin can be kept there: {error.strerror}: make room, or choose --state"
            ) from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise StudyError(f"{folder}: no coin can be kept there: it cannot be written: choose --state")


_COPY = "copy it from another party or from a backup"
