"""What a role sees of a run, and simulators that make the same from its own input and output alone (Section 5).

A view is everything a process received: ring messages as residues, and the outputs that it is meant to learn. If a
simulator that knows nothing but the process's own input and output can draw views of the same distribution, then the
ring messages told the process nothing more. The tests compare both, for every blind where N is small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from voxring.ring.residues import Random, Residues


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
    learned: Mapping[tuple[str, str], int | Fraction] = field(default_factory=dict)


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
    return f"{saw if count else 'saw no ring message'}; learned {learned or 'nothing'}"


def _short(residue: int) -> str:
    """The low digits: values are small against N, so the high ones hardly change on the way round."""
    digits = f"{residue:#x}"
    return digits if len(digits) <= 14 else f"…{digits[-10:]}"


def _number(number: int | Fraction) -> str:
    exact = str(number)
    return exact if len(exact) <= 12 else f"{float(number):.6g}"
