"""Where a party keeps the coin of a study, so that every run of it has the same rings.

One file for each study and party, ``coins/DIGEST-PARTY.json`` in the state folder, readable by its owner alone: not
because it is a secret from the other parties, who all have it, but because whoever changes it stops the study.
"""

from __future__ import annotations

import os
from contextlib import suppress
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


class CoinFile:
    """The file with the coin of one study and party, under a state folder.

    Examples
    --------
    >>> import tempfile
    >>> study = Study.of(name="liver", classes={"lesion": 1}, party=[{"name": n} for n in "abc"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = CoinFile(folder, study, "a")
    ...     file.write(bytes(32))
    ...     file.read() == bytes(32), CoinFile(folder, study, "b").read()
    (True, None)
    """

    def __init__(self, state: str | Path, study: Study, party: str) -> None:
        self.digest = study.digest
        self.path = Path(state) / "coins" / f"{study.digest}-{party}.json"

    def read(self) -> bytes | None:
        """Return the coin, or None if none is kept; make sure that one could be.

        Raises
        ------
        StudyError
            The file is not as it was written, or cannot be read, or the folder cannot be written to.
        """
        try:
            kept = msgspec.json.decode(self.path.read_bytes(), type=_Kept)
        except (FileNotFoundError, NotADirectoryError):
            self._make_folder()
            return None
        except OSError as error:
            raise StudyError(f"{self.path}: the coin cannot be read: {error.strerror}") from None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise StudyError(f"{self.path}: expected the coin of a study, got something else: {_COPY}") from None
        if kept.digest != self.digest:
            raise StudyError(
                f"{self.path}: expected the coin of study {self.digest[:12]}, got that of {kept.digest[:12]}: {_COPY}"
            )
        return bytes.fromhex(kept.coin)

    def write(self, coin: bytes) -> None:
        """Keep a coin, whole or not at all, and on the disk before this returns; one that is there is never changed.

        Raises
        ------
        StudyError
            The file cannot be written, or is there.
        """
        self._make_folder()
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(msgspec.json.encode(_Kept(self.digest, coin.hex())) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(partial, self.path)  # unlike a rename, it fails where another run was quicker
        except FileExistsError:
            raise StudyError(f"{self.path}: another run has kept a coin meanwhile: run one at a time") from None
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
            raise StudyError(f"{folder}: no coin can be kept there: {error.strerror}: choose --state") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise StudyError(f"{folder}: no coin can be kept there: it cannot be written: choose --state")


_COPY = "copy it from another party or from a backup"
