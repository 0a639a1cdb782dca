"""Vectors of residues mod N, in two forms behind one interface.

`Integers` takes any N and holds Python integers: right for the few slots of Algorithm 1. `Limbs` takes N = 2^(64·l)
and holds l planes of uint64, lowest first: a vector of millions is added at the speed of memory. A signed value v is
lifted to v mod N; the centred residue, in −N/2 … N/2, gives it back as long as |v| < N/2. A bound is public, and is one
for all slots or one for each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from voxring.errors import BoundError, LocalProtocolError, RemoteProtocolError

Random: TypeAlias = Callable[[int], bytes]
"""A source of that many uniform random bytes; `secrets.token_bytes` outside of tests."""


class Source(Protocol):
    """A `Random` that can also write its bytes where they are needed."""

    def __call__(self, count: int, /) -> bytes: ...

    def into(self, buffer: memoryview) -> None:
        """Write the next bytes over a buffer."""


Planes: TypeAlias = npt.NDArray[np.uint64]
Values: TypeAlias = Sequence[int] | npt.NDArray[np.integer]
"""Signed values, one for each slot; arrays of millions go without a copy."""
Bound: TypeAlias = int | npt.NDArray[np.int64]
"""The largest size of a value: of any, or of each slot."""
V = TypeVar("V")
_BLOCK = 1 << 15  # values looked at together, so that looking needs no second vector


class Residues(ABC, Generic[V]):
    """Arithmetic of vectors of ``slots`` residues mod ``modulus``; V is how a vector is held."""

    modulus: int
    slots: int
    width: int
    """Bytes of one residue on the wire."""

    @abstractmethod
    def of(self, slots: int) -> Residues[V]:
        """Return the arithmetic of vectors of so many slots, mod the same N."""

    def lift(self, values: Values, bound: Bound) -> V:
        """Take signed values to residues.

        Raises
        ------
        BoundError
            A value's size is above its bound; the message does not tell it.
        LocalProtocolError
            The number of values or of bounds is not ``slots``, or they are no integers.
        """
        return self.copy(self.lifted(values, bound))

    def lifted(self, values: Values, bound: Bound) -> V:
        """Do as `lift`, but where values are held as residues are, return their own memory: it is not to be changed."""
        if len(values) != self.slots:
            raise LocalProtocolError(f"a sum of {self.slots} slots was given {len(values)} values")
        if not isinstance(bound, int) and bound.shape != (self.slots,):
            raise LocalProtocolError(f"a sum of {self.slots} slots was given bounds of shape {bound.shape}")
        if isinstance(values, np.ndarray) and values.dtype.kind not in "iuO":
            raise LocalProtocolError(f"a sum needs values that are integers, got an array of {values.dtype}")
        if not within(values, bound):
            raise BoundError(OUT_OF_BOUND)
        return self._lifted(values)

    @abstractmethod
    def _lifted(self, values: Values) -> V:
        """Take values that keep their bounds to residues."""

    @abstractmethod
    def zeros(self) -> V:
        """Return a vector of zeros."""

    @abstractmethod
    def uniform(self, random: Random) -> V:
        """Draw a vector, uniform over all of them; it is not to be changed."""

    @abstractmethod
    def fill(self, body: memoryview, source: Source) -> None:
        """Draw a vector as `uniform` does, encoded into a body."""

    @abstractmethod
    def part(self, vector: V, slots: slice) -> V:
        """Return some slots of a vector; where they share its memory, changing them changes it."""

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
    def add_within(self, body: memoryview, plus: Sequence[V], minus: Sequence[V] = ()) -> None:
        """Add vectors to, and subtract others from, the one that stands encoded in a body, in place.

        Raises
        ------
        RemoteProtocolError
            As `decode`; nothing changes.
        """

    @abstractmethod
    def add_at(self, to: V, slots: slice, body: memoryview) -> None:
        """Add the vector that stands encoded in a body to those slots of a longer one.

        Raises
        ------
        RemoteProtocolError
            As `decode`; nothing changes.
        """

    @abstractmethod
    def subtract_at(self, from_: V, slots: slice, body: memoryview) -> None:
        """Do as `add_at`, but subtract."""

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
        self._measure(body)
        return self._decode(body)

    def _measure(self, body: bytes | memoryview) -> None:
        expected = self.slots * self.width
        if len(body) != expected:
            raise RemoteProtocolError(f"residues: expected {expected} bytes, got {len(body)}")

    def centred(self, vector: V) -> list[int]:
        """Return the signed values that the residues stand for."""
        half = self.modulus // 2
        return [r - self.modulus if r > half else r for r in self.tolist(vector)]


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

    def of(self, slots: int) -> Integers:
        return Integers(self.modulus, slots)

    def _lifted(self, values: Values) -> list[int]:
        return [int(value) % self.modulus for value in values]

    def zeros(self) -> list[int]:
        return [0] * self.slots

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

    def fill(self, body: memoryview, source: Source) -> None:
        body[:] = self.encode(self.uniform(source))

    def part(self, vector: list[int], slots: slice) -> list[int]:
        return vector[slots]

    def add_within(self, body: memoryview, plus: Sequence[list[int]], minus: Sequence[list[int]] = ()) -> None:
        vector = self.decode(bytes(body))
        for other in plus:
            self.add(vector, other)
        for other in minus:
            self.subtract(vector, other)
        body[:] = self.encode(vector)

    def add_at(self, to: list[int], slots: slice, body: memoryview) -> None:
        to[slots] = self.add(to[slots], self.decode(bytes(body)))

    def subtract_at(self, from_: list[int], slots: slice, body: memoryview) -> None:
        from_[slots] = self.subtract(from_[slots], self.decode(bytes(body)))

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

    def of(self, slots: int) -> Limbs:
        return Limbs(self.limbs, slots)

    def _lifted(self, values: Values) -> Planes:
        if fit_63_bits(values):
            low = np.ascontiguousarray(values, np.int64)
            if self.limbs == 1:
                return low.view(np.uint64)[np.newaxis]
            planes = np.empty((self.limbs, self.slots), np.uint64)
            planes[0] = low.view(np.uint64)
            planes[1:] = (low >> 63).view(np.uint64)  # the sign, repeated
            return planes
        stream = b"".join((int(value) % self.modulus).to_bytes(self.width, "little") for value in values)
        return np.frombuffer(stream, "<u8").reshape(self.slots, self.limbs).T.astype(np.uint64, order="C")

    def zeros(self) -> Planes:
        return np.zeros((self.limbs, self.slots), np.uint64)

    def uniform(self, random: Random) -> Planes:
        return self._planes(random(self.slots * self.width))

    def add(self, to: Planes, other: Planes) -> Planes:
        carry: npt.NDArray[np.bool_] | None = None
        for limb, (plane, theirs) in enumerate(zip(to, other, strict=True), 1):
            np.add(plane, theirs, out=plane)
            over = plane < theirs if limb < self.limbs else None
            if carry is not None:
                np.add(plane, carry, out=plane)
                if over is not None:
                    over |= carry & (plane == 0)
            carry = over
        return to

    def subtract(self, from_: Planes, other: Planes) -> Planes:
        borrow: npt.NDArray[np.bool_] | None = None
        for limb, (plane, theirs) in enumerate(zip(from_, other, strict=True), 1):
            under = plane < theirs if limb < self.limbs else None
            np.subtract(plane, theirs, out=plane)
            if borrow is not None:
                if under is not None:
                    under |= borrow & (plane == 0)
                np.subtract(plane, borrow, out=plane)
            borrow = under
        return from_

    def add_within(self, body: memoryview, plus: Sequence[Planes], minus: Sequence[Planes] = ()) -> None:
        self._measure(body)
        vector = self._planes(body)
        for other in plus:
            self.add(vector, other)
        for other in minus:
            self.subtract(vector, other)

    def add_at(self, to: Planes, slots: slice, body: memoryview) -> None:
        self._measure(body)
        self.add(to[:, slots], self._planes(body))

    def subtract_at(self, from_: Planes, slots: slice, body: memoryview) -> None:
        self._measure(body)
        self.subtract(from_[:, slots], self._planes(body))

    def fill(self, body: memoryview, source: Source) -> None:
        source.into(body)

    def part(self, vector: Planes, slots: slice) -> Planes:
        return vector[:, slots]

    def copy(self, vector: Planes) -> Planes:
        return vector.copy()

    def tolist(self, vector: Planes) -> list[int]:
        if self.limbs == 1:
            return [int(residue) for residue in vector[0].tolist()]
        columns = vector.T.astype("<u8", order="C").tobytes()
        return [int.from_bytes(piece, "little") for piece in _pieces(columns, self.width)]

    def centred(self, vector: Planes) -> list[int]:
        low = vector[0].view(np.int64)
        half = self.limbs == 1 and (low == np.iinfo(np.int64).min).any()  # stands for N/2, which an int64 does not hold
        if not half and all(np.array_equal(plane.view(np.int64), low >> 63) for plane in vector[1:]):
            values: list[int] = low.tolist()  # the planes above repeat the sign
            return values
        return super().centred(vector)

    def encode(self, vector: Planes) -> bytes:
        return vector.astype("<u8", copy=False).tobytes()

    def _decode(self, body: bytes) -> Planes:
        return self._planes(body).astype(np.uint64)

    def _planes(self, body: bytes | memoryview) -> Planes:
        """View a body as the vector that stands in it."""
        return np.frombuffer(body, "<u8").reshape(self.limbs, self.slots)


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


def within(values: Values, bound: Bound, times: int = 1) -> bool:
    """Whether every value keeps so many times its bound; exact, whatever the integers are."""
    if isinstance(bound, int):
        blocks = (values[start : start + _BLOCK] for start in range(0, len(values), _BLOCK))
        return all(-times * bound <= low and high <= times * bound for low, high in map(_range, blocks))
    if times * int(bound.max()) >= 2**63 or not fit_63_bits(values):
        return all(abs(int(value)) <= times * int(one) for value, one in zip(values, bound, strict=True))
    for start in range(0, len(values), _BLOCK):
        block = np.asarray(values[start : start + _BLOCK], np.int64)
        limit = times * bound[start : start + _BLOCK]
        if (block > limit).any() or (block < -limit).any():
            return False
    return True


def _range(values: Values) -> tuple[int, int]:
    if isinstance(values, np.ndarray):
        return int(values.min()), int(values.max())
    return min(values), max(values)


def fit_63_bits(values: Values) -> bool:
    """Whether numpy's int64 holds every value."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "i":
        return True
    smallest, largest = _range(values)
    return smallest >= -(2**63) and largest < 2**63


def _pieces(stream: bytes, width: int) -> list[bytes]:
    return [stream[start : start + width] for start in range(0, len(stream), width)]
