"""Keys of members: Ed25519. The private one in a file of its owner's, the public ones in the study."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from voxring.errors import StudyError
from voxring.study import Study

_LONGEST_FILE = 4096
_GROUPS, _DIGITS = 6, 5  # about 2^100 fingerprints: nobody finds a key with a given one


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A member's private key. Its 32 bytes show in no repr.

    Examples
    --------
    >>> key = PrivateKey(bytes(32))
    >>> key, key.public
    (PrivateKey(), 'O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik=')
    """

    raw: bytes = field(repr=False)

    @classmethod
    def new(cls) -> PrivateKey:
        """Make a key from the operating system's random numbers."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def read(cls, path: str | Path) -> PrivateKey:
        """Read a key file: PEM (PKCS #8), as `write` and ``openssl genpkey -algorithm ed25519`` make it.

        Raises
        ------
        StudyError
            There is none, others than its owner can read it, or it holds no Ed25519 key.
        """
        try:
            with open(path, "rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                content = file.read(_LONGEST_FILE)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            remedy = f"`voxring keys new {path}` makes one" if missing else "give the file that `voxring keys new` made"
            raise StudyError(f"{path}: cannot be read as a private key: {error.strerror}: {remedy}") from None
        if stat.S_IMODE(mode) & 0o077:
            raise StudyError(
                f"{path}: expected a private key that its owner alone can read, got mode {stat.S_IMODE(mode):03o}: "
                f"chmod 600 {path}; if others may have read it, make another with `voxring keys new`"
            )
        try:
            key = load_pem_private_key(content, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise StudyError(
                f"{path}: expected a private Ed25519 key in PEM without a password, got something else: "
                "`voxring keys new FILE` makes one"
            )
        return cls(key.private_bytes_raw())

    def write(self, path: str | Path) -> None:
        """Write the key to a new file that its owner alone can read.

        Raises
        ------
        StudyError
            The file exists, which may be the only copy of another key, or cannot be made.
        """
        content = self.signer.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        made = False
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                made = True
                file.write(content)
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise StudyError(f"{path}: exists, and a key is never written over: choose another file") from None
            if made:  # what cannot be written to the end is no key, and would stand in the way of one
                Path(path).unlink(missing_ok=True)
            raise StudyError(
                f"{path}: the key cannot be written: {error.strerror}: make room or the folder, or choose another place"
            ) from None

    @property
    def signer(self) -> Ed25519PrivateKey:
        """The key as `cryptography` has it."""
        return Ed25519PrivateKey.from_private_bytes(self.raw)

    @property
    def public(self) -> str:
        """The public key as it stands in a study: 32 bytes in base64."""
        return public_of(self.signer.public_key())


def public_of(key: Ed25519PublicKey) -> str:
    """Return a public key as it stands in a study."""
    return base64.b64encode(key.public_bytes_raw()).decode()


def fingerprint(public: str) -> str:
    """Return 30 digits of a public key's SHA-256, to be read over the telephone.

    Examples
    --------
    >>> fingerprint(PrivateKey(bytes(32)).public)
    '26406 88712 02780 84053 10760 22384'
    """
    number = int.from_bytes(hashlib.sha256(base64.b64decode(public)).digest(), "big")
    digits = f"{number % 10 ** (_GROUPS * _DIGITS):0{_GROUPS * _DIGITS}}"
    return " ".join(digits[i : i + _DIGITS] for i in range(0, len(digits), _DIGITS))


@dataclass(frozen=True, slots=True)
class Keyring:
    """What one member needs to seal its links: its private key, and the public keys of all."""

    digest: bytes
    """Of the study."""
    name: str
    key: PrivateKey
    keys: Mapping[str, str]


def keyring(
    study: Study, name: str, key: PrivateKey | None, *, keys: Mapping[str, str] | None = None
) -> Keyring | None:
    """Return the keyring of a member, or None for a study without keys, whose links are in the clear.

    ``keys`` are public keys instead of the study's, for simulations.

    Raises
    ------
    StudyError
        The study has keys and none is given, or the other way round, or the key given is not this member's.
    """
    publics = study.keys if keys is None else keys
    if not publics and key is None:
        return None
    if key is None:
        raise StudyError(
            f"{name}: the study has keys, so links are sealed: give this member's private key with --key FILE"
        )
    if not publics:
        raise StudyError(
            f"{name}: a key is given, the study has none: write the public keys of all parties and the researcher in it"
        )
    if publics[name] != key.public:
        raise StudyError(
            f"{name}: expected the private key of {name}, whose fingerprint is {fingerprint(publics[name])}, got that "
            f"of {fingerprint(key.public)}: give the right file, or correct the study at every member"
        )
    return Keyring(bytes.fromhex(study.digest), name, key, publics)
