"""What a role sees of a run, and simulators that make the same from its own input and output alone (Section 5).

A view is everything a process received: ring messages as residues, and the outputs that it is meant to learn. If a
simulator that knows nothing but the process's own input and output can draw views of the same distribution, then the
ring messages told the process nothing more. The tests compare both: exactly, over every input and all randomness, where
N is small, and by statistics for real runs. `simulate_member` and `simulate_master` are for one process alone, over any
number of rings; `simulate_coalition` is for several that put their views together, whatever they can learn by that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias

import numpy as np

from voxring.ring.protocol import Master, Member, SecureSum
from voxring.ring.residues import Random, Residues

Number: TypeAlias = int | Fraction | tuple[int, ...]
"""What is learned of a class; several integers where a block of additive statistics is."""


@dataclass(frozen=True, slots=True)
class Received:
    """Residues of one ring message that came in; ``blind`` is the master's own r, empty for a member."""

    sum: str
    ring: int
    modulus: int
    residues: tuple[int, ...]
    blind: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class View:
    """What one process received and learned in one session. Numbers learned go by (what, class)."""

    name: str
    received: tuple[Received, ...] = ()
    learned: Mapping[tuple[str, str], Number] = field(default_factory=dict)
    in_chunks: tuple[str, ...] = ()
    """Sums that came in chunks, whose residues are not kept: they are as long as the vectors, and as uniform."""


def simulate_member(sum_name: str, residues: Residues[list[int]], rings: int, random: Random) -> tuple[Received, ...]:
    """Draw what a member receives in one sum: it needs neither its input nor the output.

    In each ring the member sees r + (shares before it), and r is uniform and independent of everything else it sees.
    """
    return tuple(
        Received(sum_name, ring, residues.modulus, tuple(residues.tolist(residues.uniform(random))))
        for ring in range(rings)
    )


def simulate_master(
    sum_name: str, residues: Residues[list[int]], rings: int, total: Sequence[int], random: Random
) -> tuple[Received, ...]:
    """Draw what the master receives in one sum, from the total alone.

    Ring by ring it sees its own blind plus a share of the total: all shares but the last are uniform, the last makes
    up the total. With one ring this is r + total, as the paper says.
    """
    rest = residues.lift(list(total), residues.modulus)
    seen = []
    for ring in range(rings):
        blind = residues.uniform(random)
        if ring < rings - 1:
            share = residues.uniform(random)
            residues.subtract(rest, share)
        else:
            share = rest
        came = residues.add(residues.copy(share), blind)
        seen.append(
            Received(sum_name, ring, residues.modulus, tuple(residues.tolist(came)), tuple(residues.tolist(blind)))
        )
    return tuple(seen)


def simulate_coalition(
    agreed: SecureSum,
    values: Mapping[str, Sequence[int]],
    sums: Mapping[frozenset[str], Sequence[int]],
    random: Random,
) -> dict[str, tuple[Received, ...]]:
    """Draw what the members of a coalition receive in one sum, from their own values and what the rule says they learn.

    As in Section 5 it executes the protocol itself, with made-up values of the honest members, which in each component
    add up to the component's sum. Where ring neighbours are honest, the shares and blinds between them hide who of them
    has what, so views are distributed as with the true values.

    Parameters
    ----------
    agreed : SecureSum
    values : mapping of name to values
        Those of the coalition.
    sums : mapping of component to values
        For each component of the honest members (`voxring.ring.disclosure.components`) the sum of its values; zeros for
        that of the honest master, when the coalition is not told the total.
    random : Random
        For the blinds and shares of all members.

    Returns
    -------
    dict
        What each member of the coalition received.
    """
    bounds = np.broadcast_to(np.asarray(agreed.bound, object), agreed.values).tolist()
    everybody = {name: [0] * agreed.values for name in agreed.rings[0].members} | {
        n: list(v) for n, v in values.items()
    }
    for component, total in sums.items():
        left = list(total)
        for name in sorted(component - {agreed.rings[0].master}):  # each as much as the bound allows
            everybody[name] = [max(-bound, min(bound, number)) for bound, number in zip(bounds, left, strict=True)]
            left = [number - mine for number, mine in zip(left, everybody[name], strict=True)]
    master = Master(agreed, everybody.pop(agreed.rings[0].master), random)
    members = {name: Member(agreed, name, mine, random) for name, mine in everybody.items()}
    for message in master.start():
        passing = message
        while passing.receiver in members:
            passing = members[passing.receiver].receive(passing)
        master.receive(passing)
    seen = {name: member.received for name, member in members.items()}
    seen[agreed.rings[0].master] = master.received
    blinds = dict(enumerate(master.blinds))
    return {
        name: tuple(
            Received(
                agreed.name,
                ring,
                agreed.residues.modulus,
                tuple(seen[name][ring]),
                tuple(blinds[ring]) if name == agreed.rings[0].master else (),
            )
            for ring in range(len(agreed.rings))
        )
        for name in values
    }


def describe(view: View) -> str:
    """Say in one line what a process saw and learned.

    Examples
    --------
    >>> seen = Received("voxels", 0, 2**16 + 1, (0x3FA1,))
    >>> print(describe(View("a", (seen,), {("n", "lesion"): 812, ("μ", "lesion"): Fraction(7, 2)})))
    saw 1 ring message, uniform in [0, N): 0x3fa1; learned lesion: n = 812, μ = 7/2
    """
    shown = ", ".join(_short(seen.residues[0]) + (" …" if len(seen.residues) > 1 else "") for seen in view.received)
    count = len(view.received)
    saw = f"saw {count} ring message{'s, each' if count > 1 else ','} uniform in [0, N): {shown}"
    by_class: dict[str, list[str]] = {}
    for (what, name), number in view.learned.items():
        by_class.setdefault(name, []).append(f"{what} = {_number(number)}")
    if len(by_class) > 2:
        kinds = ", ".join(dict.fromkeys(what for what, _ in view.learned))
        learned = f"{kinds} of each of the {len(by_class)} classes"
    else:
        learned = "; ".join(f"{name}: {', '.join(facts)}" for name, facts in by_class.items())
    saw = saw if count else "saw no ring message" if not view.in_chunks else "saw"
    if view.in_chunks:
        saw += f"{' and' * bool(count)} the chunks of {', '.join(view.in_chunks)}, uniform too and not kept"
    return f"{saw}; learned {learned or 'nothing'}"


def _short(residue: int) -> str:
    """The low digits: values are small against N, so the high ones hardly change on the way round."""
    digits = f"{residue:#x}"
    return digits if len(digits) <= 14 else f"…{digits[-10:]}"


def _number(number: Number) -> str:
    if isinstance(number, tuple):
        return "one number" if len(number) == 1 else f"{len(number)} numbers"
    exact = str(number)
    return exact if len(exact) <= 12 else f"{float(number):.6g}"
