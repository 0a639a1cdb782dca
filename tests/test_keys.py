"""Key files, fingerprints, and which links are sealed."""

import base64
import hashlib
import os
import resource
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed448, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from voxring.errors import StudyError
from voxring.net.keys import PrivateKey, fingerprint, keyring
from voxring.result import write_whole
from voxring.study import Study

NAMES = ("a", "b", "c", "researcher")
PRIVATE = {name: PrivateKey(bytes([i]) * 32) for i, name in enumerate(NAMES)}
PUBLIC = {name: key.public for name, key in PRIVATE.items()}


def study_of(**keys: str) -> Study:
    return Study.of(
        name="s",
        classes={"x": 1},
        party=[{"name": name, "key": keys.get(name, "")} for name in "abc"],
        researcher={"key": keys.get("researcher", "")},
    )


def test_a_key_survives_its_file_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = PrivateKey.new()
    before = os.umask(0)
    try:
        key.write(path)
    finally:
        os.umask(before)
    assert PrivateKey.read(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    assert PrivateKey.new() != key
    with pytest.raises(StudyError, match="exists, and a key is never written over"):
        PrivateKey.new().write(path)
    assert PrivateKey.read(path) == key


def test_a_key_shows_in_no_repr() -> None:
    key = PrivateKey.new()
    assert repr(key) == "PrivateKey()"
    assert key.raw.hex() not in repr(keyring(study_of(**PUBLIC | {"a": key.public}), "a", key))


def test_the_public_key_is_that_of_ed25519() -> None:
    for key in PRIVATE.values():
        signature = key.signer.sign(b"x")
        Ed25519PublicKey.from_public_bytes(base64.b64decode(key.public)).verify(signature, b"x")
        assert len(key.public) == 44


def test_a_key_that_openssl_made_is_read(tmp_path: Path) -> None:
    path = tmp_path / "key"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", path], check=True)
    path.chmod(0o600)
    read = PrivateKey.read(path)
    public = subprocess.run(["openssl", "pkey", "-in", path, "-pubout", "-outform", "DER"], capture_output=True)
    assert public.stdout[-32:] == base64.b64decode(read.public)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o777])
def test_a_key_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    PRIVATE["a"].write(path)
    path.chmod(mode)
    with pytest.raises(StudyError, match=rf"got mode {mode:03o}: chmod 600 {path}"):
        PrivateKey.read(path)
    path.chmod(0o400)
    assert PrivateKey.read(path) == PRIVATE["a"]


def pem(key, encryption=None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"-----BEGIN PRIVATE KEY-----\n",
        pem(rsa.generate_private_key(65537, 2048)),
        pem(ed448.Ed448PrivateKey.generate()),
        pem(Ed25519PrivateKey.generate(), BestAvailableEncryption(b"x")),
        pem(Ed25519PrivateKey.generate())[:-40],
        b"x" * 100_000,
    ],
    ids=["empty", "garbage", "its first line", "RSA", "Ed448", "with a password", "cut off", "long"],
)
def test_what_is_no_key_is_refused_without_showing_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StudyError, match="expected a private Ed25519 key in PEM without a password") as error:
        PrivateKey.read(path)
    assert "PRIVATE" not in str(error.value)
    assert error.value.__cause__ is None


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"none: cannot be read .*: No such file.*`voxring keys new"):
        PrivateKey.read(tmp_path / "none")
    with pytest.raises(StudyError, match="Is a directory"):
        PrivateKey.read(tmp_path)
    with pytest.raises(StudyError, match="cannot be written: No such file"):
        PRIVATE["a"].write(tmp_path / "none" / "key")


def test_a_fingerprint_is_the_end_of_the_sha256_in_decimal() -> None:
    for key in PRIVATE.values():
        number = int(hashlib.sha256(base64.b64decode(key.public)).hexdigest(), 16)
        assert fingerprint(key.public).replace(" ", "") == str(number)[-30:]
        assert [len(group) for group in fingerprint(key.public).split(" ")] == [5] * 6
    assert len({fingerprint(key.public) for key in PRIVATE.values()}) == len(PRIVATE)


def test_links_are_sealed_when_the_study_has_keys_and_never_otherwise() -> None:
    sealed, clear = study_of(**PUBLIC), study_of()
    assert keyring(clear, "a", None) is None
    ring = keyring(sealed, "a", PRIVATE["a"])
    assert ring is not None
    assert (ring.digest, ring.name, ring.keys) == (bytes.fromhex(sealed.digest), "a", PUBLIC)
    with pytest.raises(StudyError, match=r"^a: the study has keys, so links are sealed: .* --key FILE"):
        keyring(sealed, "a", None)
    with pytest.raises(StudyError, match=r"^a: a key is given, the study has none"):
        keyring(clear, "a", PRIVATE["a"])
    with pytest.raises(StudyError, match="expected the private key of a") as error:
        keyring(sealed, "a", PRIVATE["b"])
    assert fingerprint(PUBLIC["a"]) in str(error.value)
    assert fingerprint(PUBLIC["b"]) in str(error.value)
    simulated = keyring(clear, "researcher", PRIVATE["researcher"], keys=PUBLIC)
    assert simulated is not None
    assert simulated.keys == PUBLIC


def test_what_does_not_fit_on_the_disk_leaves_no_file(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for number, write in enumerate((PrivateKey.new().write, lambda path: write_whole(path, bytes(100)))):
        path = tmp_path / str(number)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
        try:
            with pytest.raises(StudyError, match="cannot be written: File too large: make room"):
                write(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert list(tmp_path.iterdir()) == []
