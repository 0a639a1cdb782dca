"""The checksum slot: accidents inside a party are found, whatever they do to which slots; it tells nothing more."""

import hashlib
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxring.errors import BoundError, RemoteProtocolError
from voxring.fixedpoint import modulus
from voxring.ring.checksum import CheckedSum
from voxring.ring.order import Ring, rings_of
from voxring.ring.protocol import Master, Member, SecureSum
from voxring.ring.residues import residues_mod

NAMES, BOUND, SLOTS = "abcde", 2**40, 64
DIGEST, SESSION = bytes(range(32)), bytes(range(16))
RINGS = rings_of(bytes(32), NAMES, 2)
DRAW = random.Random(3)  # noqa: S311


def a_sum(*, slots: int = SLOTS, bound: int = BOUND, rings: tuple[Ring, ...] = RINGS) -> CheckedSum:
    residues = residues_mod(modulus(len(NAMES), bound), slots + 1)
    return CheckedSum(DIGEST, SESSION, "sum", rings, residues, bound)


def naive_checksum(agreed: CheckedSum, values: list[int]) -> int:
    """The definition: weights are numbers of streams of SHAKE-256, lowest byte first, 64 bits longer than N.

    There is a stream for every 2^15 values.
    """
    n = agreed.residues.modulus
    length = (n - 1).bit_length() // 8 + 8
    total = 0
    for number, value in enumerate(values):
        block, place = divmod(number, 2**15)
        if place == 0:
            seed = b"voxring checksum 2|" + DIGEST + SESSION + b"sum|" + str(block).encode()
            stream = hashlib.shake_256(seed).digest(length * 2**15)
        weight = sum(byte << (8 * i) for i, byte in enumerate(stream[place * length : (place + 1) * length]))
        total = (total + weight * value) % n
    return total


@given(st.lists(st.integers(-BOUND, BOUND), min_size=1, max_size=6))
def test_the_checksum_is_what_the_definition_gives(values: list[int]) -> None:
    agreed = a_sum(slots=len(values))
    assert agreed.with_checksum(values) == [*values, naive_checksum(agreed, values)]
    assert agreed.values == len(values)


@pytest.mark.parametrize("bound", [1, BOUND, 2**63 - 1, 2**63, 2**100])
def test_the_checksum_of_a_long_vector_at_the_limits_is_what_the_definition_gives(bound: int) -> None:
    values = [-bound, bound, 0, -1, 1, bound - 1] * 3 + [DRAW.randint(-bound, bound) for _ in range(2**15)]
    agreed = a_sum(slots=len(values), bound=bound)
    assert agreed.with_checksum(values)[-1] == naive_checksum(agreed, values)
    assert agreed.lower(agreed.lift(values)) == values
    assert agreed.lower(agreed.residues.lift(agreed.with_checksum(values), agreed.residues.modulus)) == values


@pytest.mark.parametrize("dtype", [np.int64, object])
def test_a_bound_may_be_of_each_slot(dtype: type) -> None:
    bounds = np.array([1, 10, 2**40 if dtype is np.int64 else 2**80], dtype)
    residues = residues_mod(modulus(len(NAMES), int(bounds.max())), 4)
    agreed = CheckedSum(DIGEST, SESSION, "sum", RINGS, residues, bounds)
    most = [int(bound) for bound in bounds]
    assert agreed.lower(agreed.lift(most)) == most
    for slot in range(3):
        over = [bound + (place == slot) for place, bound in enumerate(most)]
        with pytest.raises(BoundError):
            agreed.lift(over)
        totals = [len(NAMES) * bound + (place == slot) for place, bound in enumerate(most)]
        with pytest.raises(RemoteProtocolError, match="do not fit"):
            agreed.lower(residues.lift(agreed.with_checksum(totals), residues.modulus))


def run(agreed: CheckedSum, values: dict[str, list[int]], corrupt: Callable[[list[list[int]]], None]) -> list[int]:
    """One sum, in which ``corrupt`` changes the residues of c's shares before they are added."""
    master = Master(agreed, [0] * agreed.values, DRAW.randbytes)
    members = {name: Member(agreed, name, mine, DRAW.randbytes) for name, mine in values.items()}
    shares = [agreed.residues.tolist(share) for share in members["c"]._shares]
    corrupt(shares)
    n = agreed.residues.modulus
    members["c"]._shares = [agreed.residues.lift([r % n for r in share], n) for share in shares]
    for message in master.start():
        while message.receiver in members:
            message = members[message.receiver].receive(message)  # noqa: PLW2901
        master.receive(message)
    return master.total


def flip(shares: list[list[int]]) -> None:
    """A bit of one residue: of a low, a middle or the highest one, in a value or in the checksum itself."""
    share = DRAW.choice(shares)
    share[DRAW.randrange(SLOTS + 1)] ^= 1 << DRAW.choice([0, 5, 40, 63, 64, 100, 127])


def leave_out(shares: list[list[int]]) -> None:
    shares[0][:16] = [0] * 16


def add_twice(shares: list[list[int]]) -> None:
    shares[0][:16] = [2 * r for r in shares[0][:16]]


def swap(shares: list[list[int]]) -> None:
    for share in shares:
        share[:16], share[16:32] = share[16:32], share[:16]


def shift(shares: list[list[int]]) -> None:
    shares[1][:SLOTS] = [shares[1][SLOTS - 1], *shares[1][: SLOTS - 1]]


def turn_bytes(shares: list[list[int]]) -> None:
    shares[0][7] = int.from_bytes(shares[0][7].to_bytes(16, "little"), "big")


def forget(shares: list[list[int]]) -> None:
    for share in shares:
        share[:] = [0] * (SLOTS + 1)
    shares[0][0] = 1


@pytest.mark.parametrize("corrupt", [flip, leave_out, add_twice, swap, shift, turn_bytes, forget])
def test_an_accident_inside_a_party_is_found(corrupt: Callable[[list[list[int]]], None]) -> None:
    agreed = a_sum()
    for _ in range(100):
        values = {name: [DRAW.randrange(-BOUND, BOUND + 1) for _ in range(SLOTS)] for name in NAMES}
        assert run(agreed, values, lambda shares: None) == [
            sum(column) for column in zip(*values.values(), strict=True)
        ]
        with pytest.raises(RemoteProtocolError, match="do not fit: the numbers of a party were changed"):
            run(agreed, values, corrupt)


def test_without_the_range_of_totals_a_high_bit_could_pass() -> None:
    """Why the range is looked at too: 2^127 times an even weight is 0 mod 2^128."""
    agreed = a_sum(slots=1)
    weight = agreed.with_checksum([1])[1]
    slots = next(n for n in range(1, 9) if a_sum(slots=n).with_checksum([0] * (n - 1) + [1])[n] % 2 == 0)
    agreed = a_sum(slots=slots)
    vector = agreed.residues.lift([0] * slots + [0], 1)
    high = agreed.residues.lift([0] * (slots - 1) + [2**127, 0], 2**127)
    with pytest.raises(RemoteProtocolError, match="do not fit"):
        agreed.lower(agreed.residues.add(vector, high))
    assert weight < agreed.residues.modulus


def test_one_that_means_it_is_not_found() -> None:
    """What the module says that it cannot find."""
    agreed = a_sum()
    values = {name: [1] * SLOTS for name in NAMES}

    def lie(shares: list[list[int]]) -> None:
        other = agreed.with_checksum([1000, *[0] * (SLOTS - 1)])
        shares[0][:] = [r + more for r, more in zip(shares[0], other, strict=True)]

    assert run(agreed, values, lie) == [1005, *[5] * (SLOTS - 1)]


def test_a_value_beyond_the_bound_is_refused_before_it_is_split() -> None:
    with pytest.raises(BoundError, match="nothing of this sum was sent"):
        Member(a_sum(slots=2), "a", [0, BOUND + 1], DRAW.randbytes)


def test_weights_differ_between_sums_sessions_and_studies() -> None:
    base = a_sum(slots=1)
    others = [
        CheckedSum(bytes(32), SESSION, "sum", RINGS, base.residues, BOUND),
        CheckedSum(DIGEST, bytes(16), "sum", RINGS, base.residues, BOUND),
        CheckedSum(DIGEST, SESSION, "sdsum", RINGS, base.residues, BOUND),
    ]
    assert len({agreed.with_checksum([1])[1] for agreed in (base, *others)}) == 4
    assert isinstance(base, SecureSum)
