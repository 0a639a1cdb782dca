"""Who stands next to whom: the ring of a study.

The researcher is the master with value 0 and stands first; the parties follow in an order drawn from the digest of the
study, so every process finds the same ring and no message is needed. It is fixed for the study on purpose: the same
values sent round fresh random rings would tell two colluders everything within a few runs.

What this is not: a coin that nobody controls. Whoever writes the study can try many names for it until the order
suits; parties that fear this need a coin drawn jointly, which this version does not have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from voxring.errors import StudyError

RESEARCHER = "researcher"
MIN_PARTIES = 3
_DRAW = 8  # bytes per draw: a draw is rejected with a chance below parties / 2^64


@dataclass(frozen=True, slots=True)
class Ring:
    """A ring of names, the master first; a message goes from each to the next and ends at the master.

    Examples
    --------
    >>> ring = Ring(("researcher", "b", "a", "c"))
    >>> ring.successor("c"), ring.predecessor("a"), ring.last
    ('researcher', 'b', 'c')
    """

    members: tuple[str, ...]

    @property
    def master(self) -> str:
        """The one that blinds the sum and takes the blind off."""
        return self.members[0]

    @property
    def last(self) -> str:
        """The one that hands the sum back to the master."""
        return self.members[-1]

    def successor(self, name: str) -> str:
        """Whom a member sends to."""
        return self.members[(self.members.index(name) + 1) % len(self.members)]

    def predecessor(self, name: str) -> str:
        """Whom a member hears from."""
        return self.members[self.members.index(name) - 1]


def rings_of(digest: bytes, parties: Sequence[str]) -> tuple[Ring, ...]:
    """Return the rings of a study, today always one: the researcher, then the parties in the order of the digest.

    Raises
    ------
    StudyError
        There are fewer than three parties, or a name stands twice.

    Examples
    --------
    >>> (ring,) = rings_of(bytes(32), ["a", "b", "c"])
    >>> ring.master, sorted(ring.members[1:])
    ('researcher', ['a', 'b', 'c'])
    """
    if len(parties) < MIN_PARTIES:
        raise StudyError(
            f"study: party: expected at least {MIN_PARTIES} parties, got {len(parties)}: "
            "with fewer, a total tells one party the other's number"
        )
    if len({RESEARCHER, *parties}) != len(parties) + 1:
        raise StudyError("study: party: expected each name once, and none 'researcher': rename one")
    return (Ring((RESEARCHER, *_shuffled(sorted(parties), b"voxring ring order 1|" + digest))),)


def _shuffled(names: list[str], seed: bytes) -> list[str]:
    """Fisher and Yates' shuffle; every order is equally likely over the seeds."""
    draws = _draws(seed)
    for i in range(len(names) - 1, 0, -1):
        limit = 2 ** (8 * _DRAW) // (i + 1) * (i + 1)
        draw = next(draw for draw in draws if draw < limit)
        j = draw % (i + 1)
        names[i], names[j] = names[j], names[i]
    return names


def _draws(seed: bytes) -> Iterator[int]:
    """Yield integers of 64 bits from SHAKE-256, one block of it after the other."""
    block = 0
    while True:
        stream = hashlib.shake_256(seed + block.to_bytes(4, "big")).digest(64 * _DRAW)
        for start in range(0, len(stream), _DRAW):
            yield int.from_bytes(stream[start : start + _DRAW], "big")
        block += 1
