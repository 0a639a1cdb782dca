"""Names for patients that tell them apart and mean nothing outside one party.

A name is the HMAC-SHA256 of who the files say, under a salt that never leaves the party's state folder: the same in
every scan, and without the salt nobody can find whom it belongs to by trying names.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from voxring.errors import StudyError

_SALT_BYTES = 32
_DIGITS = 24  # 96 bits: no two patients share a name by chance


class Pseudonyms:
    """Names for patients under a secret salt.

    Examples
    --------
    >>> Pseudonyms(bytes(32)).of("patient 4711") == Pseudonyms(bytes(32)).of(" patient 4711")
    True
    """

    def __init__(self, salt: bytes) -> None:
        self._salt = salt

    @classmethod
    def kept(cls, state: str | Path) -> Pseudonyms:
        """Use the salt of a state folder; make one, readable by its owner alone, where there is none.

        Raises
        ------
        StudyError
            The file cannot be read or made, others can read it, or it holds no salt.
        """
        path = Path(state) / "patients.salt"
        with suppress(FileNotFoundError):
            return cls(_read(path))
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(_SALT_BYTES))
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):  # another scan was quicker: use its salt
                os.link(partial, path)
        except OSError as error:
            raise StudyError(
                f"{path}: the salt cannot be kept: {error.strerror}: make room, or choose --state"
            ) from None
        finally:
            with suppress(OSError):
                partial.unlink()
        return cls(_read(path))

    def of(self, patient: str) -> str:
        """Return the name of a patient; an empty one stands for all who are not known."""
        return hmac.new(self._salt, patient.strip().encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[
            :_DIGITS
        ]


def _read(path: Path) -> bytes:
    """Read a salt; FileNotFoundError where there is none."""
    try:
        with path.open("rb") as file:
            mode, salt = os.fstat(file.fileno()).st_mode, file.read(_SALT_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StudyError(f"{path}: the salt cannot be read: {error.strerror}: choose --state") from None
    if stat.S_IMODE(mode) & 0o077:
        raise StudyError(
            f"{path}: expected a salt that its owner alone can read, got mode {stat.S_IMODE(mode):03o}: chmod 600 it; "
            "if others may have read it, remove it and scan anew"
        )
    if len(salt) != _SALT_BYTES:
        raise StudyError(f"{path}: expected a salt of {_SALT_BYTES} bytes, got others: remove the file and scan anew")
    return salt
