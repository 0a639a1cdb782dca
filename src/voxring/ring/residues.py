"""Vectors of residues mod N, in two forms behind one interface.

`Integers` takes any N and holds Python integers: right for the few slots of Algorithm 1. `Limbs` takes N = 2^(64·l)
and holds l planes of uint64, lowest first: a vector of millions is added at the speed of memory. A signed value v is
lifted to v mod N; the centred residue, in −N/2 … N/2, gives it back as long as |v| < N/2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from voxring.errors import BoundError, LocalProtocolError, RemoteProtocolError

Random: TypeAlias = Callable[[int], bytes]
"""A source of that many uniform random bytes; `secrets.token_bytes` outside of tests."""

Planes: TypeAlias = npt.NDArray[np.uint64]
V = TypeVar("V")


class Residues(ABC, Generic[V]):
    """Arithmetic of vectors of ``slots`` residues mod ``modulus``; V is how a vector is held."""

    modulus: int
    slots: int
    width: int
    """Bytes of one residue on the wire."""

    @abstractmethod
    def lift(self, values: Sequence[int] | npt.NDArray[np.integer], bound: int) -> V:
        """Take signed values to residues.

        Raises
        ------
        BoundError
            A value's size is above ``bound``; the message does not tell it.
        LocalProtocolError
            The number of values is not ``slots``.
        """

    @abstractmethod
    def uniform(self, random: Random) -> V:
        """Draw a vector, uniform over all of them."""

    @abstractmethod
    def add(self, to: V, other: V) -> V:
        """Add in place; return ``to``."""

    @abstractmethod
    def subtract(self, from_: V, other: V) -> V:
        """Subtract in place; return ``from_``."""

    @abstractmethod
    def copy(self, vector: V) -> V:
        """Return a vector that can be changed alone."""

    @abstractmethod
    def tolist(self, vector: V) -> list[int]:
        """Return the residues, each in 0 … N − 1."""

    @abstractmethod
    def encode(self, vector: V) -> bytes:
        """Return the vector in ``slots · width`` bytes."""

    @abstractmethod
    def _decode(self, body: bytes) -> V:
        """Read a body of the right length."""

    def decode(self, body: bytes) -> V:
        """Read a vector from bytes.

        Raises
        ------
        RemoteProtocolError
            The length is wrong or a residue is not below N.
        """
        expected = self.slots * self.width
        if len(body) != expected:
            raise RemoteProtocolError(f"residues: expected {expected} bytes, got {len(body)}")
        return self._decode(body)

    def centred(self, vector: V) -> list[int]:
        """Return the signed values that the residues stand for."""
        half = self.modulus // 2
        return [r - self.modulus if r > half else r for r in self.tolist(vector)]

    def _count(self, count: int) -> None:
        if count != self.slots:
            raise LocalProtocolError(f"a sum of {self.slots} slots was given {count} values")


class Integers(Residues[list[int]]):
    """Residues mod any N as Python integers; on the wire each in as many bytes as N − 1 needs, highest first.

    Examples
    --------
    >>> mod7 = Integers(7, slots=2)
    >>> mod7.centred(mod7.add(mod7.lift([-3, 2], bound=3), mod7.lift([1, 1], bound=3)))
    [-2, 3]
    """

    def __init__(self, modulus: int, slots: int) -> None:
        if modulus < 2 or slots < 1:
            raise LocalProtocolError("a sum needs a modulus of at least 2 and at least one slot")
        self.modulus, self.slots = modulus, slots
        self._bits = (modulus - 1).bit_length()
        self.width = (self._bits + 7) // 8

    def lift(self, values: Sequence[int] | npt.NDArray[np.integer], bound: int) -> list[int]:
        self._count(len(values))
        if any(abs(int(value)) > bound for value in values):
            raise BoundError(OUT_OF_BOUND)
        return [int(value) % self.modulus for value in values]

    def uniform(self, random: Random) -> list[int]:
        # Rejection, not "mod N": that would make small residues likelier and the blind would leak.
        mask, drawn = (1 << self._bits) - 1, list[int]()
        while missing := self.slots - len(drawn):
            stream = random(missing * self.width)
            numbers = (int.from_bytes(piece, "big") & mask for piece in _pieces(stream, self.width))
            drawn += [number for number in numbers if number < self.modulus]
        return drawn

    def add(self, to: list[int], other: list[int]) -> list[int]:
        to[:] = [(a + b) % self.modulus for a, b in zip(to, other, strict=True)]
        return to

    def subtract(self, from_: list[int], other: list[int]) -> list[int]:
        from_[:] = [(a - b) % self.modulus for a, b in zip(from_, other, strict=True)]
        return from_

    def copy(self, vector: list[int]) -> list[int]:
        return list(vector)

    def tolist(self, vector: list[int]) -> list[int]:
        return list(vector)

    def encode(self, vector: list[int]) -> bytes:
        return b"".join(residue.to_bytes(self.width, "big") for residue in vector)

    def _decode(self, body: bytes) -> list[int]:
        vector = [int.from_bytes(piece, "big") for piece in _pieces(body, self.width)]
        if any(residue >= self.modulus for residue in vector):
            raise RemoteProtocolError("residues: expected numbers below the modulus, got a larger one")
        return vector


class Limbs(Residues[Planes]):
    """Residues mod 2^(64·limbs) as planes of uint64, an array (limbs, slots), lowest plane first, also on the wire.

    Examples
    --------
    >>> wide = Limbs(2, slots=2)
    >>> wide.centred(wide.add(wide.lift([-1, 2**63], bound=2**63), wide.lift([1, 2**63], bound=2**63)))
    [0, 18446744073709551616]
    """

    def __init__(self, limbs: int, slots: int) -> None:
        if limbs < 1 or slots < 1:
            raise LocalProtocolError("a sum needs at least one limb and at least one slot")
        self.limbs, self.slots = limbs, slots
        self.modulus = 1 << (64 * limbs)
        self.width = 8 * limbs

    def lift(self, values: Sequence[int] | npt.NDArray[np.integer], bound: int) -> Planes:
        self._count(len(values))
        if isinstance(values, np.ndarray):
            smallest, largest = int(values.min()), int(values.max())
        else:
            smallest, largest = min(values), max(values)
        if smallest < -bound or largest > bound:
            raise BoundError(OUT_OF_BOUND)
        if smallest >= -(2**63) and largest < 2**63:
            low = np.asarray(values).astype(np.int64)
            planes = np.empty((self.limbs, self.slots), np.uint64)
            planes[0] = low.view(np.uint64)
            planes[1:] = (low >> 63).view(np.uint64)  # the sign, repeated
            return planes
        stream = b"".join((int(value) % self.modulus).to_bytes(self.width, "little") for value in values)
        return np.frombuffer(stream, "<u8").reshape(self.slots, self.limbs).T.astype(np.uint64, order="C")

    def uniform(self, random: Random) -> Planes:
        return self._decode(random(self.slots * self.width))

    def add(self, to: Planes, other: Planes) -> Planes:
        carry: npt.NDArray[np.bool_] | None = None
        for plane, theirs in zip(to, other, strict=True):
            np.add(plane, theirs, out=plane)
            over = plane < theirs
            if carry is not None:
                np.add(plane, carry, out=plane)
                over |= carry & (plane == 0)
            carry = over
        return to

    def subtract(self, from_: Planes, other: Planes) -> Planes:
        borrow: npt.NDArray[np.bool_] | None = None
        for plane, theirs in zip(from_, other, strict=True):
            under = plane < theirs
            np.subtract(plane, theirs, out=plane)
            if borrow is not None:
                under |= borrow & (plane == 0)
                np.subtract(plane, borrow, out=plane)
            borrow = under
        return from_

    def copy(self, vector: Planes) -> Planes:
        return vector.copy()

    def tolist(self, vector: Planes) -> list[int]:
        if self.limbs == 1:
            return [int(residue) for residue in vector[0].tolist()]
        columns = vector.T.astype("<u8", order="C").tobytes()
        return [int.from_bytes(piece, "little") for piece in _pieces(columns, self.width)]

    def encode(self, vector: Planes) -> bytes:
        return vector.astype("<u8", copy=False).tobytes()

    def _decode(self, body: bytes) -> Planes:
        return np.frombuffer(body, "<u8").reshape(self.limbs, self.slots).astype(np.uint64)


def residues_mod(modulus: int, slots: int) -> Residues[Any]:
    """Return the faster form that the modulus allows: limbs for a power of 2^64, integers for any other."""
    limbs = (modulus.bit_length() - 1) // 64
    if limbs and modulus == 1 << (64 * limbs):
        return Limbs(limbs, slots)
    return Integers(modulus, slots)


OUT_OF_BOUND = (
    "a value of this party leaves the public bound of the study; nothing of this sum was sent: "
    "ask the researcher for a study with larger bounds"
)


def _pieces(stream: bytes, width: int) -> list[bytes]:
    return [stream[start : start + width] for start in range(0, len(stream), width)]
