"""A secure sum of numbers with noise: differential privacy.

Every party holds its own numbers against their bounds, adds its share of noise to each, and takes part with the result
mod N; the master adds none. Nothing that happens then depends on how large a noisy number is: no party refuses one or
draws again, since that would tell something of it. Sums are taken mod N, so what anybody learns follows from the total
of numbers and noise alone, which is what the promise of `voxring.privacy` is about.

N is made for numbers and noise within their bound and tail. A share leaves its tail with a probability of at most
2^-128, so with fewer than 2^64 shares some total is out of its range, which the master refuses, with one below 2^-64.
It takes noise 2^64 times as large to wrap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from voxring.errors import BoundError, LocalProtocolError
from voxring.privacy import Noise
from voxring.ring.checksum import CheckedSum
from voxring.ring.residues import OUT_OF_BOUND, Random, Values, within

Draw = Callable[[Sequence[Noise], Random], Sequence[int]]
"""Draws a party's share of noise for each slot."""


def shares_of_noise(noises: Sequence[Noise], random: Random) -> list[int]:
    """Draw a party's share of noise for each slot."""
    return [noise.share(random) for noise in noises]


@dataclass(frozen=True)
class NoisySum(CheckedSum):
    """A secure sum in which every party adds a share of noise to each of its values.

    Parameters
    ----------
    noises : tuple of Noise
        That of each slot.
    exact_bound : int
        The largest size of a value of one party before noise; ``bound`` is after.
    """

    noises: tuple[Noise, ...] = ()
    exact_bound: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.noises) != self.values:
            raise LocalProtocolError(f"a sum of {self.values} values was given {len(self.noises)} noises")

    def with_noise(self, values: Sequence[int], random: Random, draw: Draw = shares_of_noise) -> list[int]:
        """Return a party's values with its share of noise on each, to be handed in once.

        Raises
        ------
        BoundError
            A value leaves its bound before noise.
        """
        if not within(values, self.exact_bound):
            raise BoundError(OUT_OF_BOUND)
        return [value + share for value, share in zip(values, draw(self.noises, random), strict=True)]

    def lift(self, values: Values) -> Any:
        if len(values) != self.values:
            raise LocalProtocolError(f"a sum of {self.values} values was given {len(values)}")
        half = self.residues.modulus // 2
        return self._lift([(int(value) + half) % self.residues.modulus - half for value in values])
