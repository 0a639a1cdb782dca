"""Who stands next to whom: the rings of a study.

The researcher is the master with value 0. Rings are Walecki's: the hub, here the researcher, then a zigzag over the
parties, turned by one place for each further ring. With k parties the first ⌊k/2⌋ rings share no edge, as the paper
asks ("no site has the same neighbor twice"); for odd k one ring more, which uses some edges twice, makes the graph
complete. Which party stands at which place is drawn with a coin that the parties throw together (`coin`). It is fixed
for the study on purpose: the same values sent round fresh random rings would tell two colluders everything within a
few runs.

What a coalition learns depends on the union of the rings (`disclosure`): while its vertex connectivity is t + 1 or
more, t colluders cannot part the others. The connectivity is computed for the rings at hand, not assumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

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


def rings_of(coin: bytes, parties: Sequence[str], collusion: int = 1) -> tuple[Ring, ...]:
    """Return the fewest of Walecki's rings whose union no ``collusion`` members can part, places drawn with the coin.

    Raises
    ------
    StudyError
        There are fewer than three parties, a name stands twice, or no rings stand that many colluders.

    Examples
    --------
    >>> (ring,) = rings_of(bytes(32), ["a", "b", "c"])
    >>> ring.master, sorted(ring.members[1:])
    ('researcher', ['a', 'b', 'c'])
    >>> two = rings_of(bytes(32), ["a", "b", "c", "d", "e"], collusion=3)
    >>> len(two), connectivity(two)
    (2, 4)
    """
    check_parties(parties)
    most = len(parties) - 1
    if not 1 <= collusion <= most:
        raise StudyError(
            f"study: privacy.collusion: expected 1 to {most} colluders among {len(parties)} parties and the "
            f"researcher, got {collusion}: the largest reachable is {most}"
        )
    places = _shuffled(sorted(parties), b"voxring ring order 2|" + coin)
    rings: list[Ring] = []
    for zigzag in _walecki(len(parties)):
        rings.append(Ring((RESEARCHER, *(places[place] for place in zigzag))))
        if 2 * len(rings) > collusion and connectivity(rings) > collusion:
            return tuple(rings)
    raise StudyError(f"study: privacy.collusion: no rings of {len(parties)} parties stand {collusion} colluders")


def check_parties(parties: Sequence[str]) -> None:
    """Refuse fewer than three parties and doubled names.

    Raises
    ------
    StudyError
        Says which.
    """
    if len(parties) < MIN_PARTIES:
        raise StudyError(
            f"study: party: expected at least {MIN_PARTIES} parties, got {len(parties)}: "
            "with fewer, a total tells one party the other's number"
        )
    if len({RESEARCHER, *parties}) != len(parties) + 1:
        raise StudyError("study: party: expected each name once, and none 'researcher': rename one")


def connectivity(rings: Sequence[Ring]) -> int:
    """Return the vertex connectivity of the union of rings: how many members must go to part the others.

    The complete graph, which nothing parts, counts as one less than its members. Menger: it is the least number of
    paths, without a common member in between, that join two members who are no neighbours.

    Examples
    --------
    >>> connectivity([Ring(("researcher", "a", "b", "c", "d"))])
    2
    >>> connectivity([Ring(("researcher", "a", "b", "c")), Ring(("researcher", "b", "a", "c"))])
    3
    """
    index = {name: i for i, name in enumerate(rings[0].members)}
    near = [0] * len(index)  # the neighbours of each member, one bit each
    for ring in rings:
        for name in ring.members:
            i, j = index[name], index[ring.successor(name)]
            near[i] |= 1 << j
            near[j] |= 1 << i
    return _connectivity(tuple(near))


@lru_cache(maxsize=256)
def _connectivity(near: tuple[int, ...]) -> int:
    found = min(neighbours.bit_count() for neighbours in near)
    start = 0
    # A set of `found` members that parts the rest leaves one of the first found + 1 out, parted from somebody.
    while start <= found and start < len(near):
        for end in range(len(near)):
            if end != start and not near[start] >> end & 1:
                found = min(found, _disjoint_paths(near, start, end, found))
        start += 1
    return found


def _disjoint_paths(near: tuple[int, ...], start: int, end: int, limit: int) -> int:
    """Count paths from start to end without a common member in between, up to a limit.

    Ford and Fulkerson on the graph with each member v split into an entry v and an exit v + size, one unit through.
    """
    size = len(near)
    common = near[start] & near[end]  # each is a path of its own, in some largest choice of paths
    paths = common.bit_count()
    onward = [1 << (v + size) for v in range(size)] + [neighbours & ~common for neighbours in near]
    while paths < limit:
        came = {start + size: -1}
        edge, seen = [start + size], 1 << (start + size) | 1 << start
        for node in edge:
            fresh = onward[node] & ~seen
            seen |= fresh
            while fresh:
                bit = fresh & -fresh
                fresh ^= bit
                came[bit.bit_length() - 1] = node
                edge.append(bit.bit_length() - 1)
            if seen >> end & 1:
                break
        else:
            return paths
        node = end
        while (before := came[node]) >= 0:
            onward[before] &= ~(1 << node)
            onward[node] |= 1 << before
            node = before
        paths += 1
    return paths


def _walecki(parties: int) -> Iterator[list[int]]:
    """Yield the places of the parties in each ring: the zigzag 0, 1, −1, 2, −2 … mod k, turned by one each time.

    Neighbours in a ring turned by i have places whose sum mod k is 2i or 2i + 1, so rings share no edge until the
    sums come round.
    """
    zigzag = [(place + 1) // 2 if place % 2 else -(place // 2) for place in range(parties)]
    for turn in range((parties + 1) // 2):
        yield [(place + turn) % parties for place in zigzag]


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
