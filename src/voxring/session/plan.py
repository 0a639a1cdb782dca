"""What researcher and parties agree on before a secure sum: who, which slots, which modulus. All of it is public."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from voxring.errors import LocalProtocolError
from voxring.fixedpoint import modulus
from voxring.landmarks import SCALE, inner_landmarks, landmark_bound
from voxring.learn.logistic import zero
from voxring.privacy import Noise, noises, noises_of_statistics
from voxring.ring.checksum import CheckedSum
from voxring.ring.chunks import CHUNK_BYTES
from voxring.ring.coin import COIN_BYTES, binding
from voxring.ring.message import OVERHEAD, SumName, kind_of_sum, step_name
from voxring.ring.noisy import NoisySum
from voxring.ring.order import Ring, check_parties, rings_of
from voxring.ring.protocol import SecureSum
from voxring.ring.residues import residues_mod
from voxring.statistics import largest_bound, padded, slots
from voxring.study import MOST_LANDMARKS, AtWeights, Study
from voxring.totals import LocalTotals, count_bound, sdsum_bound, sum_bound

SESSION_BYTES = 16
IN_CHUNKS = CHUNK_BYTES[0]
"""A vector of more bytes goes round in chunks. A shorter one would be a single chunk, which a frame carries as well and
without more connections; and a relay carries no longer frame."""


@dataclass(frozen=True)
class Plan:
    """The secure sums of a study: three, one more if it asks for more statistics, one for each step of a logistic
    regression, and two before all these if landmarks are to be agreed on; the rings are known once the coin is.

    Raises
    ------
    StudyError
        The study has fewer than three parties.
    """

    study: Study
    coin: bytes | None = None

    def __post_init__(self) -> None:
        check_parties(self.study.parties)

    def with_coin(self, coin: bytes) -> Plan:
        """Return the same plan with the coin that was drawn, or kept from an earlier run."""
        return replace(self, coin=coin)

    @cached_property
    def digest(self) -> bytes:
        """Digest of the study, in every message but shares."""
        return bytes.fromhex(self.study.digest)

    @cached_property
    def rings(self) -> tuple[Ring, ...]:
        """The rings of the study.

        Raises
        ------
        LocalProtocolError
            The coin is not known yet.
        """
        return rings_of(self.known_coin, self.study.parties, self.study.privacy.collusion)

    @cached_property
    def binding(self) -> bytes:
        """What stands for study and coin, in shares."""
        return binding(self.digest, self.known_coin)

    @property
    def known_coin(self) -> bytes:
        """The coin.

        Raises
        ------
        LocalProtocolError
            It is not known yet.
        """
        if self.coin is None:
            raise LocalProtocolError("the rings are known when the coin is drawn")
        return self.coin

    @property
    def ring_count(self) -> int:
        """How many rings the study has, whatever the coin is."""
        return len(rings_of(bytes(COIN_BYTES), self.study.parties, self.study.privacy.collusion))

    @property
    def may_stream(self) -> bool:
        """Whether a sum of the study may go round in chunks."""
        return self.longest > IN_CHUNKS

    @property
    def longest(self) -> int:
        """Bytes of the longest vector that is summed, at most."""
        slots = max(2 * len(self.study.classes), inner_landmarks(self.study) if self.study.agrees else 0) + 1
        return max(slots * self._width, self._longest_statistics, self._longest_step)

    @property
    def _longest_statistics(self) -> int:
        widest = largest_bound(self.study) + _tail(noises_of_statistics(self.study, list(self.study.classes)))
        width = (self._modulus(widest).bit_length() + 7) // 8
        return (slots(self.study) * len(self.study.classes) + 1) * width

    @property
    def _longest_step(self) -> int:
        if self.study.logistic is None:
            return 0
        at = self.study.at(zero(len(self.study.classes), len(self.study.feature)), self.study.classes)
        width = (self._modulus(self._step_bound(at)).bit_length() + 7) // 8
        return (slots(at) + 1) * width

    @staticmethod
    def in_chunks(agreed: SecureSum) -> bool:
        """Whether a sum goes round in chunks."""
        return agreed.residues.slots * agreed.residues.width > IN_CHUNKS

    @property
    def _width(self) -> int:
        """Bytes of the widest residue."""
        study = self.study
        tail = _tail(noises(study, ["voxels"], list(study.classes)))
        most = len(study.parties) * (count_bound(study) + tail)
        finest = dict.fromkeys(study.classes, Fraction(1, study.denominator * most))  # no μ has a larger denominator
        bound = sdsum_bound(study, next(iter(finest.values())))
        widest = bound + _tail(noises(study, ["sdsum"], list(finest), finest))
        return (self._modulus(widest).bit_length() + 7) // 8

    @property
    def largest_frame(self) -> int:
        """Bytes of the largest legal message, with slack: what a socket may be sent at all."""
        study, width = self.study, self._width
        classes = len(study.classes)
        names = sum(len(name.encode()) for name in study.classes)
        # A share has up to two slots a class and a checksum, or all additive statistics that do not go in chunks; the
        # message of μ two integers and a name a class, that of the coin's parts a name and a part for each party.
        parts = sum(len(name) + COIN_BYTES + 16 for name in study.parties)
        # Or all inner landmarks; the message of the standard scale has their fractions.
        longest = max(self._longest_statistics, self._longest_step)
        more = max(min(longest, IN_CHUNKS), MOST_LANDMARKS * (width + 64) if study.agrees else 0)
        if study.logistic is not None:  # its weights, of 80 bits at most
            more = max(more, classes * (len(study.feature) + 1) * 16)
        return 2 * OVERHEAD + parts + names + max(width + classes * (2 * width + 64), more)

    def images(self, session: bytes) -> SecureSum:
        """How many images and patients there are, where landmarks are to be agreed on."""
        return self._sum(session, "images", 2, count_bound(self.study))

    def landmarks(self, session: bytes) -> SecureSum:
        """The landmarks of all images, but for the first and the last (`voxring.landmarks`)."""
        return self._sum(session, "landmarks", inner_landmarks(self.study), landmark_bound(self.study))

    def voxels(self, session: bytes) -> SecureSum:
        """Line 14: n, and how many patients, of each class."""
        noisy = noises(self.study, ["voxels", "patients"], list(self.study.classes))
        return self._sum(session, "voxels", 2 * len(self.study.classes), count_bound(self.study), noisy)

    def sums(self, session: bytes, released: Sequence[str]) -> SecureSum:
        """Line 15: sum, of the released classes."""
        noisy = noises(self.study, ["sum"], released)
        return self._sum(session, "sum", len(released), sum_bound(self.study), noisy)

    def sdsums(self, session: bytes, means: Mapping[str, Fraction]) -> SecureSum:
        """Line 26: sdsum, of the released classes; each over its own ``(μ.denominator · unit)²``."""
        bound = max(sdsum_bound(self.study, mean) for mean in means.values())
        noisy = noises(self.study, ["sdsum"], list(means), means)
        return self._sum(session, "sdsum", len(means), bound, noisy)

    @cached_property
    def more(self) -> bool:
        """Whether the study asks for additive statistics."""
        return slots(self.study) > 0

    def begin_event(self, name: str) -> str:
        """What a party's state machine calls what it computes after."""
        return f"{name} to agree" if self.study.agrees else name

    def share_event(self, name: str, released: int) -> str:
        """What a party's state machine calls a share of a sum, with so many released classes.

        What comes after sdsum depends on the study, and what comes after the statistics on the classes, too.
        """
        if name == "sdsum" and self.more:
            return "share sdsum of four"
        fits = self.study.logistic is not None and released > 1
        return "share statistics to fit" if name == "statistics" and fits else f"share {kind_of_sum(name)}"

    def statistics(self, session: bytes, released: Sequence[str]) -> SecureSum:
        """What the study asks for beside, of the released classes; a party's slots keep bounds of their own."""
        noisy = noises_of_statistics(self.study, released)
        return self._sum(session, "statistics", slots(self.study) * len(released), largest_bound(self.study), noisy)

    def step(self, session: bytes, number: int, at: AtWeights) -> SecureSum:
        """A step of the logistic regression, of all released classes together."""
        return self._sum(session, step_name(number), slots(at), self._step_bound(at))

    @staticmethod
    def _step_bound(at: AtWeights) -> int:
        return largest_bound(at) * len(at.classes)  # a party's voxels are bounded class by class

    def _sum(self, session: bytes, name: SumName, slots: int, bound: int, noisy: tuple[Noise, ...] = ()) -> SecureSum:
        if self.study.differential_privacy is not None:
            # Whatever sum is added here one day has noise for each slot, or is refused by the sum itself.
            most = bound + _tail(noisy)
            residues = residues_mod(self._modulus(most), slots + 1)
            return NoisySum(self.binding, session, name, self.rings, residues, most, noisy, bound)
        residues = residues_mod(self._modulus(bound), slots + 1)
        return CheckedSum(self.binding, session, name, self.rings, residues, bound)

    def _modulus(self, bound: int) -> int:
        return modulus(len(self.study.parties), bound)

    @staticmethod
    def image_values(landmarks: LocalTotals) -> list[int]:
        """A party's slots of the sum of images."""
        return [landmarks[SCALE].sum, landmarks[SCALE].patients]

    def landmark_values(self, landmarks: LocalTotals) -> list[int]:
        """A party's slots of the sum of landmarks."""
        return list(landmarks[SCALE].statistics) or [0] * inner_landmarks(self.study)

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

    def statistics_values(self, totals: LocalTotals, released: Sequence[str]) -> list[int]:
        """A party's slots of the fourth sum, class by class in the order of `voxring.statistics.layout`."""
        mine = [totals[name] for name in released]
        return [value for one in mine for value in padded(one.statistics, one.voxels, self.study)]


def _tail(noisy: tuple[Noise, ...]) -> int:
    return max((noise.tail for noise in noisy), default=0)
