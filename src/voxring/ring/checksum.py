"""A checksum slot: corruption inside a party is found before the total is believed.

Every party adds one slot to its values, c = Σ_j w_j·v_j mod N, with weights w_j that are uniform mod N and fixed by the
sum. Slots are added mod N alike, so the sum of the c must be Σ_j w_j·T_j of the totals T_j. It is a function of the
totals, which whoever learns it has anyway: it tells nothing more.

What it finds: memory or a program that changes a party's numbers between the moment when it had them and the moment
when its share was added: a flipped bit, a slot that was left out, added twice, shifted or swapped. N is at least 2^64
times what totals can be (`voxring.fixedpoint.modulus`), and totals outside of their public range are refused, so an
error that does not depend on the weights passes with a probability of at most 2^-64.

What it cannot find: numbers that were wrong before, such as those of a damaged image; and whoever means it, who makes
the checksum fit.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from voxring.errors import BoundError, LocalProtocolError, RemoteProtocolError
from voxring.ring.protocol import SecureSum
from voxring.ring.residues import OUT_OF_BOUND, Limbs, Values, fit_63_bits, within

_BLOCK = 1 << 15  # values whose weights are made together


class CheckedSum(SecureSum):
    """A secure sum whose residues have one slot more than there are values.

    Examples
    --------
    >>> from voxring.ring.order import Ring
    >>> from voxring.ring.residues import residues_mod
    >>> ring = Ring(("researcher", "a", "b", "c"))
    >>> agreed = CheckedSum(bytes(32), bytes(16), "sum", (ring,), residues_mod(2**128, 3), bound=100)
    >>> agreed.lower(agreed.residues.add(agreed.lift([1, -2]), agreed.lift([10, 20])))
    [11, 18]
    """

    @property
    def values(self) -> int:
        return self.residues.slots - 1

    def with_checksum(self, values: Values) -> list[int]:
        """Return the values and their checksum."""
        return [*map(int, values), self._checksum(values)]

    def lift(self, values: Values) -> Any:
        if len(values) != self.values:
            raise LocalProtocolError(f"a sum of {self.values} values was given {len(values)}")
        if not within(values, self.bound):
            raise BoundError(OUT_OF_BOUND)
        return self._lift(values)

    def _lift(self, values: Values) -> Any:
        """Take values, whatever they are, and their checksum to residues."""
        residues, checksum = self.residues, self._checksum(values)
        if not isinstance(residues, Limbs):
            return residues.lift([*map(int, values), checksum], residues.modulus)
        vector = residues.zeros()
        vector[:, :-1] = residues.of(self.values).lifted(values, residues.modulus)
        vector[:, -1:] = residues.of(1).lifted([checksum], residues.modulus)
        return vector

    def lifted(self, values: Values) -> Any:
        return self.lift(values)

    def lower(self, vector: Any) -> list[int]:
        """Return the totals.

        Raises
        ------
        RemoteProtocolError
            A total is none that the parties can have, or the checksum is not that of the totals.
        """
        residues = self.residues
        totals = residues.of(self.values).centred(residues.part(vector, slice(self.values)))
        (checksum,) = residues.of(1).tolist(residues.part(vector, slice(self.values, None)))
        if not within(totals, self.bound, self.parties) or self._checksum(totals) != checksum:
            raise RemoteProtocolError(
                f"sum of {self.name!r}: the total and its checksum do not fit: the numbers of a party were changed on "
                "the way, by faulty memory or a faulty program: run it again, and test the machines if it comes again"
            )
        return totals

    def totals(self, vector: Any) -> list[int]:
        return self.lower(vector)

    def _checksum(self, values: Values) -> int:
        blocks = range(0, len(values), _BLOCK)
        parts = (self._part(block, values[start : start + _BLOCK]) for block, start in enumerate(blocks))
        return sum(parts) % self.residues.modulus

    def _part(self, block: int, values: Values) -> int:
        """Add up values times weights; the weights of each block are a stream of their own."""
        width = self.residues.width + 8  # 64 bits more than N needs: uniform mod N for all that matters
        seed = b"voxring checksum 2|%b%b%b|%d" % (self.digest, self.session, self.name.encode(), block)
        digits = hashlib.shake_256(seed).digest(width * len(values))
        if fit_63_bits(values):
            return _dot(np.frombuffer(digits, "<u2").reshape(len(values), -1), np.asarray(values, "<i8"))
        weights = (int.from_bytes(digits[i : i + width], "little") for i in range(0, len(digits), width))
        return sum(w * int(v) for w, v in zip(weights, values, strict=True))


def _dot(weights: npt.NDArray[np.uint16], values: npt.NDArray[np.int64]) -> int:
    """Add up weights of many digits of 16 bits times values, at most `_BLOCK` of them.

    Products of two digits, added up over a block, are below 2^53: floats hold them exactly, and add them fast.
    """
    low = np.ascontiguousarray(values).view("<u2").reshape(-1, 4).astype(np.float64)
    low[:, 3] -= 65536.0 * (values < 0)  # the highest digit has the sign
    sums = weights.astype(np.float64).T @ low
    return sum(int(one) << (16 * (i + j)) for (i, j), one in np.ndenumerate(sums))
