"""A party's ledger: an append-only file of what it agreed to, took part in and sent, in which no line can be changed.

One SQLite file for each party, ``ledgers/PARTY.sqlite`` in the state folder, readable by its owner alone. Each entry
holds the hash of the one before it, so that a change anywhere breaks the chain from there on: `Ledger.verified` names
the first entry that does not fit. SQL's own UPDATE, DELETE and an INSERT that does not continue the chain are refused
by triggers; the chain finds what gets past them. One thing it cannot show is that entries are missing at the *end*, or
that a whole chain was made anew: only whoever has noted a later head elsewhere can tell.

Each entry is a transaction of its own, on the disk before `Ledger.append` returns. A crash leaves the entries before
it; SQLite's lock lets one process write at a time.

Beside it stands ``PARTY.salt``, 32 random bytes. What must be recognised but not be read, such as a patient's numbers,
goes into the ledger as a hash keyed with them (`Ledger.token`). They are no part of the ledger, which can be shown to
an auditor without them.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from voxring.errors import StudyError

BUSY_SECONDS = 10.0  # a write takes milliseconds; longer means that somebody holds the file
SALT_BYTES = 32
FORMAT = 1
TOKEN_BYTES = 16
NO_HASH = ""  # what stands for the hash before the first entry

_FIELDS = "sequence, time, kind, content, previous, hash"
# Without the third, INSERT OR REPLACE would put another entry in an old one's place and no trigger on DELETE would see.
_SCHEMA = """
CREATE TABLE ledger (
    sequence INTEGER PRIMARY KEY,
    time TEXT NOT NULL,
    kind TEXT NOT NULL,
    content TEXT NOT NULL,
    previous TEXT NOT NULL,
    hash TEXT NOT NULL
);
CREATE TRIGGER no_update BEFORE UPDATE ON ledger BEGIN SELECT RAISE(ABORT, 'a ledger is only added to'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON ledger BEGIN SELECT RAISE(ABORT, 'a ledger is only added to'); END;
CREATE TRIGGER no_gap BEFORE INSERT ON ledger
WHEN NEW.sequence IS NOT (SELECT coalesce(max(sequence), 0) + 1 FROM ledger)
    OR NEW.previous IS NOT coalesce((SELECT hash FROM ledger ORDER BY sequence DESC LIMIT 1), '')
BEGIN SELECT RAISE(ABORT, 'an entry continues the chain'); END;
"""


class Entry(msgspec.Struct, frozen=True):
    """One entry. ``content`` is canonical JSON; ``hash`` is over all other fields."""

    sequence: int
    time: str
    kind: str
    content: str
    previous: str
    hash: str


class Ledger:
    """The ledger of one party under a state folder; nothing is made before the first entry.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ledger = Ledger(folder, "north")
    ...     entry = ledger.append("approval", {"study": "liver"})
    ...     [entry.kind for entry in ledger.entries()], ledger.verified()[-1] == entry
    (['opened', 'approval'], True)
    """

    def __init__(self, state: str | Path, party: str) -> None:
        if not party or Path(party).name != party:  # it becomes a file's name
            raise StudyError(f"expected the name of a party, as a study gives it, got {party!r}")
        self.party = party
        self.path = _folder(state) / f"{party}{_ENDING}"
        self._salt_path = self.path.with_suffix(".salt")

    @property
    def exists(self) -> bool:
        """Whether there is an entry."""
        return self.path.exists()

    def append(self, kind: str, content: object) -> Entry:
        """Add an entry; it is on the disk when this returns.

        Parameters
        ----------
        kind : str
            What it is about.
        content : object
            What msgspec can write as JSON.

        Raises
        ------
        StudyError
            The ledger cannot be written, or is none, or its salt is missing or another's.
        """
        with self._transaction() as db:
            return _insert(db, kind, content)

    def append_judged(self, kind: str, judge: Callable[[Sequence[Entry]], object]) -> Entry:
        """Add an entry whose content follows from the earlier ones: nobody else writes between.

        Parameters
        ----------
        kind : str
            What it is about.
        judge : callable
            Gets all earlier entries, and returns the content or raises what keeps it out.

        Raises
        ------
        StudyError
            As `append`.
        """
        with self._transaction() as db:
            return _insert(db, kind, judge(_read(db)))

    def entries(self) -> list[Entry]:
        """Return all entries, unchecked.

        Raises
        ------
        StudyError
            There is no ledger, or it cannot be read.
        """
        if not self.exists:
            raise StudyError(
                f"{self.path}: no such ledger: this party has approved no study with this state folder: "
                "check the name, or give --state"
            )
        with self._errors(), closing(self._connect()) as db:
            return _read(db)

    def verified(self) -> list[Entry]:
        """Return all entries after following the chain; the hash of the last one is the head.

        Raises
        ------
        StudyError
            An entry does not fit, the first such is named; or the ledger is missing or cannot be read.
        """
        entries = self.entries()
        self._check_chain(entries)
        self._check_first(entries, None)
        return entries

    def where(self) -> str:
        """Say how many entries there are, and the head, for an operator to note.

        Raises
        ------
        StudyError
            As `verified`.
        """
        last = self.verified()[-1]
        return f"ledger of {self.party}: {last.sequence} entries, head {last.hash}"

    def token(self, what: str, *parts: object) -> str:
        """Return a hash that only this party can make: the same for the same parts, and telling nothing about them.

        Raises
        ------
        StudyError
            The salt cannot be read.
        """
        return _token(self._make(), what, *parts)

    def _check_chain(self, entries: Sequence[Entry]) -> None:
        previous = NO_HASH
        for number, entry in enumerate(entries, 1):
            fault = None
            if entry.sequence != number:
                fault = f"expected number {number}, got {entry.sequence}: an entry is missing or was put in"
            elif entry.previous != previous:
                fault = "it does not name the hash of the entry before it"
            elif entry.hash != _hash(entry.sequence, entry.time, entry.kind, entry.content, entry.previous):
                fault = "its hash is not that of what it holds: it was changed"
            if fault is not None:
                raise StudyError(f"{self.path}: the chain is broken at entry {number}: {fault}; {_BACKUP}")
            previous = entry.hash

    def _check_first(self, entries: Sequence[Entry], salt: bytes | None) -> None:
        try:
            first = msgspec.json.decode(entries[0].content, type=dict[str, int | str])
        except (IndexError, msgspec.MsgspecError):
            raise StudyError(f"{self.path}: entry 1 is not that of a ledger: {_BACKUP}") from None
        if first.get("party") != self.party:
            raise StudyError(f"{self.path}: expected the ledger of {self.party}, got that of another: {_BACKUP}")
        if salt is not None and first.get("salt") != _token(salt, "salt"):
            raise StudyError(f"{self._salt_path}: expected the salt that {self.path.name} began with: {_BACKUP}")

    def _make(self) -> bytes:
        """Make sure that both files are there, and return the salt."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._salt_path.exists():
                # Looked at again: another process may just have made the salt, and then the ledger.
                if self.exists and not self._salt_path.exists():
                    raise StudyError(f"{self._salt_path}: missing beside its ledger: {_BACKUP}")
                self._write_salt()
            # Not opened when it is there: to close a file ends all locks that this process has on it, SQLite's too.
            with suppress(FileExistsError):
                os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            salt = self._salt_path.read_bytes()
        except OSError as error:
            raise StudyError(
                f"{self.path}: no ledger can be kept there: {error.strerror}: make room, or choose --state"
            ) from None
        if len(salt) != SALT_BYTES:
            raise StudyError(f"{self._salt_path}: expected {SALT_BYTES} bytes, got {len(salt)}: {_BACKUP}")
        return salt

    def _write_salt(self) -> None:
        partial = self._salt_path.with_name(f".{self._salt_path.name}.{secrets.token_hex(4)}")
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(SALT_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was quicker: its salt counts
            os.link(partial, self._salt_path)
        partial.unlink()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=rw", BUSY_SECONDS, isolation_level=None, uri=True)
        db.text_factory = lambda text: text.decode("utf-8", "replace")  # what was tampered with is found by its hash
        return db

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        salt = self._make()
        with self._errors(), closing(self._connect()) as db:
            db.execute("PRAGMA synchronous = EXTRA")  # the end of a transaction is on the disk, too
            db.execute("BEGIN IMMEDIATE")
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'ledger'").fetchone():
                for statement in _statements(_SCHEMA):
                    db.execute(statement)
                _insert(db, "opened", {"format": FORMAT, "party": self.party, "salt": _token(salt, "salt")})
            self._check_first(_read(db, 1), salt)
            yield db
            db.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise StudyError(
                f"{self.path}: the ledger cannot be read or written: {error}: if another process holds it, wait; "
                f"else {_BACKUP}"
            ) from None


def parties_with_ledger(state: str | Path) -> list[str]:
    """Return whose ledgers are under a state folder."""
    return sorted(path.name.removesuffix(_ENDING) for path in _folder(state).glob(f"*{_ENDING}"))


_ENDING = ".sqlite"
_BACKUP = "put it back from a backup; without one, move it away and begin another, which knows of no earlier run"


def _folder(state: str | Path) -> Path:
    return Path(state) / "ledgers"


def _statements(script: str) -> Iterator[str]:
    """Split SQL, since `executescript` would end the transaction."""
    statement = ""
    for line in script.strip().splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _read(db: sqlite3.Connection, limit: int = -1) -> list[Entry]:
    rows = db.execute(f"SELECT {_FIELDS} FROM ledger ORDER BY sequence LIMIT ?", (limit,))  # noqa: S608
    return [Entry(*row) for row in rows]


def _insert(db: sqlite3.Connection, kind: str, content: object) -> Entry:
    last = db.execute("SELECT sequence, hash FROM ledger ORDER BY sequence DESC LIMIT 1").fetchone()
    sequence, previous = last or (0, NO_HASH)
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    text = msgspec.json.encode(content, order="sorted").decode()
    fields = (sequence + 1, time, kind, text, previous)
    entry = Entry(*fields, _hash(*fields))
    db.execute(f"INSERT INTO ledger ({_FIELDS}) VALUES (?, ?, ?, ?, ?, ?)", msgspec.structs.astuple(entry))  # noqa: S608
    return entry


def _hash(*fields: object) -> str:
    return hashlib.sha256(msgspec.json.encode(fields)).hexdigest()


def _token(salt: bytes, *parts: object) -> str:
    return hmac.new(salt, msgspec.json.encode(parts), "sha256").hexdigest()[: 2 * TOKEN_BYTES]
