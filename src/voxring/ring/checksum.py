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

from voxring.errors import BoundError, LocalProtocolError, RemoteProtocolError
from voxring.ring.protocol import SecureSum
from voxring.ring.residues import OUT_OF_BOUND, Values, within


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
        return self.residues.lift(self.with_checksum(values), self.residues.modulus)

    def lifted(self, values: Values) -> Any:
        return self.lift(values)

    def lower(self, vector: Any) -> list[int]:
        """Return the totals.

        Raises
        ------
        RemoteProtocolError
            A total is none that the parties can have, or the checksum is not that of the totals.
        """
        *totals, checksum = self.residues.centred(vector)
        kept = within(totals, self.bound, self.parties)
        if not kept or (self._checksum(totals) - checksum) % self.residues.modulus:
            raise RemoteProtocolError(
                f"sum of {self.name!r}: the total and its checksum do not fit: the numbers of a party were changed on "
                "the way, by faulty memory or a faulty program: run it again, and test the machines if it comes again"
            )
        return totals

    def totals(self, vector: Any) -> list[int]:
        return self.lower(vector)

    def _checksum(self, values: Values) -> int:
        width = self.residues.width + 8  # 64 bits more than N needs: uniform mod N for all that matters
        stream = hashlib.shake_256(b"voxring checksum 1|" + self.digest + self.session + self.name.encode())
        digits = stream.digest(width * len(values))
        weights = (int.from_bytes(digits[i : i + width], "little") for i in range(0, len(digits), width))
        return sum(w * int(v) for w, v in zip(weights, values, strict=True)) % self.residues.modulus
