"""What researcher and parties agree on before a secure sum: who, which slots, which modulus. All of it is public."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from voxring.fixedpoint import modulus
from voxring.ring.message import OVERHEAD, SumName
from voxring.ring.order import Ring, rings_of
from voxring.ring.protocol import SecureSum
from voxring.ring.residues import residues_mod
from voxring.study import Study
from voxring.totals import LocalTotals, count_bound, sdsum_bound, sum_bound

SESSION_BYTES = 16


@dataclass(frozen=True)
class Plan:
    """The three secure sums of a study.

    Raises
    ------
    StudyError
        The study has fewer than three parties.
    """

    study: Study

    def __post_init__(self) -> None:
        _ = self.rings

    @cached_property
    def digest(self) -> bytes:
        """Digest of the study, in every message."""
        return bytes.fromhex(self.study.digest)

    @cached_property
    def rings(self) -> tuple[Ring, ...]:
        """The rings of the study; today one."""
        return rings_of(self.digest, self.study.parties)

    @property
    def ring(self) -> Ring:
        """The one ring."""
        return self.rings[0]

    @property
    def largest_frame(self) -> int:
        """Bytes of the largest legal message, with slack: what a socket may be sent at all."""
        study = self.study
        classes = len(study.classes)
        most = len(study.parties) * count_bound(study)
        finest = Fraction(1, study.denominator * most)  # no μ has a larger denominator
        width = (self._modulus(sdsum_bound(study, finest)).bit_length() + 7) // 8
        names = sum(len(name.encode()) for name in study.classes)
        # A share has up to two slots a class, the message of μ two integers and a name.
        return 2 * OVERHEAD + names + classes * (2 * width + 64)

    def voxels(self, session: bytes) -> SecureSum:
        """Line 14: n, and how many patients, of each class."""
        return self._sum(session, "voxels", 2 * len(self.study.classes), count_bound(self.study))

    def sums(self, session: bytes, released: Sequence[str]) -> SecureSum:
        """Line 15: sum, of the released classes."""
        return self._sum(session, "sum", len(released), sum_bound(self.study))

    def sdsums(self, session: bytes, means: Mapping[str, Fraction]) -> SecureSum:
        """Line 26: sdsum, of the released classes; each over its own ``(μ.denominator · unit)²``."""
        bound = max(sdsum_bound(self.study, mean) for mean in means.values())
        return self._sum(session, "sdsum", len(means), bound)

    def _sum(self, session: bytes, name: SumName, slots: int, bound: int) -> SecureSum:
        residues = residues_mod(self._modulus(bound), slots)
        return SecureSum(self.digest, session, name, self.rings, residues, bound)

    def _modulus(self, bound: int) -> int:
        return modulus(len(self.study.parties), bound)

    def voxel_values(self, totals: LocalTotals) -> list[int]:
        """A party's slots of the first sum."""
        mine = [totals[name] for name in self.study.classes]
        return [one.voxels for one in mine] + [one.patients for one in mine]

    def sum_values(self, totals: LocalTotals, released: Sequence[str]) -> list[int]:
        """A party's slots of the second sum, over ``study.denominator``."""
        return [totals[name].sum for name in released]

    def sdsum_values(self, totals: LocalTotals, means: Mapping[str, Fraction]) -> list[int]:
        """A party's slots of the third sum."""
        return [totals[name].sdsum(mean, self.study.unit) for name, mean in means.items()]
