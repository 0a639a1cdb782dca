"""Long vectors, chunk by chunk: the ring core against plain sums of Python's integers, and what it refuses."""

import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from random import Random
from typing import ClassVar

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given, settings
from hypothesis import strategies as st

from voxring.errors import BoundError, LocalProtocolError, RemoteProtocolError
from voxring.ring import chunks
from voxring.ring.chunks import HEAD_BYTES, ChunkedSum, ChunkMaster, ChunkMember
from voxring.ring.keystream import Keystream
from voxring.ring.order import RESEARCHER, Ring, rings_of
from voxring.ring.protocol import SecureSum
from voxring.ring.residues import Integers, Limbs, Residues

DIGEST, SESSION = bytes(range(32)), bytes(range(16))
RING = Ring((RESEARCHER, "b", "a", "c"))
RINGS = (RING, Ring((RESEARCHER, "c", "b", "a")), Ring((RESEARCHER, "a", "c", "b")))


def agreed(residues: Residues, bound, *, chunk: int = 3, rings: int = 1, **changes: object) -> ChunkedSum:
    fields = {"digest": DIGEST, "session": SESSION, "name": "sum", **changes}
    return ChunkedSum(SecureSum(rings=RINGS[:rings], residues=residues, bound=bound, **fields), chunk)


def members_of(plan: ChunkedSum, values: dict[str, Sequence[int]]) -> dict[str, ChunkMember]:
    return {name: ChunkMember(plan, name, mine, secrets.token_bytes) for name, mine in values.items()}


def frame_of(plan: ChunkedSum, master: ChunkMaster, ring: int, chunk: int) -> bytearray:
    frame = bytearray(plan.frame_bytes(chunk))
    master.fill(memoryview(frame), ring, chunk)
    return frame


def go_round(plan: ChunkedSum, members: dict[str, ChunkMember], frame: bytearray, ring: int) -> bytearray:
    for name in plan.agreed.rings[ring].members[1:]:
        members[name].receive(memoryview(frame))
    return frame


def run(plan: ChunkedSum, values: dict[str, Sequence[int]]) -> ChunkMaster:
    master, members = ChunkMaster(plan, secrets.token_bytes), members_of(plan, values)
    for ring, chunk in product(range(len(plan.agreed.rings)), range(plan.count)):
        master.receive(memoryview(go_round(plan, members, frame_of(plan, master, ring, chunk), ring)))
    assert all(member.done for member in members.values())
    return master


def plain(values: dict[str, Sequence[int]]) -> list[int]:
    return [sum(map(int, column)) for column in zip(*values.values(), strict=True)]


# Sums.


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_the_total_is_the_plain_sum_at_the_limits_of_one_to_four_limbs(data: st.DataObject) -> None:
    limbs = data.draw(st.integers(1, 4))
    most = (2 ** (64 * limbs) - 1) // 2 // 3  # the largest bound that N takes for three parties
    bound = data.draw(st.sampled_from([most, most - 1, 2 ** (64 * limbs - 3), 2**61, 1]))
    value = st.one_of(st.sampled_from([-bound, bound, 0, 1, -1, bound - 1]), st.integers(-bound, bound))
    slots = data.draw(st.integers(1, 17))
    values = {name: data.draw(st.lists(value, min_size=slots, max_size=slots)) for name in "abc"}
    chunk, rings = data.draw(st.integers(1, slots + 2)), data.draw(st.integers(1, 3))
    for residues in (Limbs(limbs, slots), Integers(6 * bound + 1, slots)):
        total = run(agreed(residues, bound, chunk=chunk, rings=rings), values).total
        assert list(map(int, total)) == plain(values)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint64, object])
@pytest.mark.parametrize("limbs", [1, 2, 3])
def test_arrays_of_any_integers_are_summed_and_left_as_they_were(dtype: type, limbs: int) -> None:
    draw = np.random.default_rng(1)
    arrays = {name: draw.integers(0, 200, 50_000).astype(dtype) for name in "abc"}
    before = {name: array.copy() for name, array in arrays.items()}
    plan = agreed(Limbs(limbs, 50_000), 200, chunk=0, rings=2)
    assert plan.length == 32768 // limbs
    total = run(plan, arrays).total
    assert list(map(int, total)) == plain(arrays)
    assert all((arrays[name] == before[name]).all() for name in arrays)
    assert isinstance(total, np.ndarray) == (limbs == 1)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_chunks_in_any_order_within_the_window_and_repeated_give_the_same_total(data: st.DataObject) -> None:
    slots, rings = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 3))
    plan = agreed(Limbs(data.draw(st.integers(1, 3)), slots), 2**60, chunk=data.draw(st.integers(1, 5)), rings=rings)
    number = st.integers(-(2**60), 2**60)
    values = {name: data.draw(st.lists(number, min_size=slots, max_size=slots)) for name in "abc"}
    draw: Random = data.draw(st.randoms(use_true_random=False))
    master, members = ChunkMaster(plan, secrets.token_bytes), members_of(plan, values)
    waiting, under_way, window = list(product(range(rings), range(plan.count))), [], draw.randint(1, 8)
    while waiting or under_way:
        if waiting and len(under_way) < window:
            ring, chunk = waiting.pop(0)
            under_way.append([ring, 0, bytes(frame_of(plan, master, ring, chunk))])
        at = draw.randrange(len(under_way))
        ring, hop, frame = under_way[at]
        buffer = bytearray(frame)
        if hop == 3:
            master.receive(memoryview(buffer))
            del under_way[at]
        else:
            members[plan.agreed.rings[ring].members[hop + 1]].receive(memoryview(buffer))
            under_way[at] = [ring, hop + 1, bytes(buffer)]
        if draw.random() < 0.3:  # the network repeats what it has just carried
            again = bytearray(frame)
            if hop == 3:
                master.receive(memoryview(again))
            else:
                members[plan.agreed.rings[ring].members[hop + 1]].receive(memoryview(again))
                assert again == buffer
    assert list(map(int, master.total)) == plain(values)


@pytest.mark.soak
@pytest.mark.parametrize("limbs", [1, 2, 3, 4])
def test_millions_of_slots_are_summed(limbs: int) -> None:
    draw = np.random.default_rng(limbs)
    most = 2**61
    arrays = {name: draw.integers(-most, most, 1_000_003) for name in "abc"}
    total = run(agreed(Limbs(limbs, 1_000_003), most, chunk=0, rings=3), arrays).total
    assert (np.asarray(total, np.int64) == sum(arrays.values())).all()


# Bounds.


@pytest.mark.parametrize("residues", [Integers(2**64 - 1, 4), Limbs(1, 4), Limbs(2, 4)])
@pytest.mark.parametrize("slot", range(4))
@pytest.mark.parametrize("kind", [list, lambda numbers: np.array(numbers, np.int64)])
def test_every_slot_keeps_its_own_bound(residues: Residues, slot: int, kind: Callable) -> None:
    bounds = np.array([1, 2**40, 0, 2**60])
    plan = agreed(residues, bounds, chunk=1)
    good = [1, -(2**40), 0, 2**60]
    ChunkMember(plan, "a", kind(good), secrets.token_bytes)
    ChunkMember(plan, "a", kind([-one for one in good]), secrets.token_bytes)
    for sign in (1, -1):
        bad = [*good]
        bad[slot] = sign * (int(bounds[slot]) + 1)
        with pytest.raises(BoundError) as refused:
            ChunkMember(plan, "a", kind(bad), secrets.token_bytes)
        assert str(bad[slot]) not in str(refused.value)


def test_a_bound_is_kept_in_blocks_beyond_the_first_and_against_the_widest_integers() -> None:
    slots = 70_001
    for at in (0, 40_000, slots - 1):
        values = np.zeros(slots, np.int64)
        values[at] = 6
        for bound in (5, np.full(slots, 5)):
            with pytest.raises(BoundError):
                ChunkMember(agreed(Limbs(1, slots), bound, chunk=0), "a", values, secrets.token_bytes)
    for value in (2**63, -(2**63) - 1, 2**200):
        for bound in (5, np.array([5])):
            with pytest.raises(BoundError):
                ChunkMember(agreed(Limbs(4, 1), bound), "a", [value], secrets.token_bytes)
    for value in (np.array([2**64 - 1], np.uint64), np.array([-(2**63)], np.int64)):
        with pytest.raises(BoundError):
            ChunkMember(agreed(Limbs(2, 1), np.array([2**62])), "a", value, secrets.token_bytes)


def test_wrong_shapes_and_types_are_a_local_error() -> None:
    for values, bound in (([1, 2], 5), ([1, 2, 3], np.array([5, 5])), (np.array([1.0, 2.0, 3.0]), 5)):
        with pytest.raises(LocalProtocolError):
            ChunkMember(agreed(Limbs(1, 3), bound), "a", values, secrets.token_bytes)
    with pytest.raises(LocalProtocolError, match="too small"):
        agreed(Limbs(1, 2), np.array([1, 2**62]))


def test_a_total_that_the_bounds_do_not_allow_is_refused() -> None:
    for residues in (Limbs(1, 2), Limbs(2, 2)):
        honest, other = agreed(residues, np.array([5, 100])), agreed(residues, np.array([100, 100]))
        values = {"a": [5, 100], "b": [-5, 100], "c": [5, 100]}
        assert list(run(honest, values).total) == [5, 300]
        master = ChunkMaster(honest, secrets.token_bytes)
        members = members_of(honest, values) | {"a": ChunkMember(other, "a", [16, 0], secrets.token_bytes)}
        master.receive(memoryview(go_round(honest, members, frame_of(honest, master, 0, 0), 0)))
        with pytest.raises(RemoteProtocolError, match="inconsistent"):
            _ = master.total


# What is refused.


def damaged(frame: bytearray, plan: ChunkedSum, **head: object) -> bytearray:
    """The same frame with other fields and a checksum that fits them."""
    magic, identity, ring, place, chunk = chunks._HEAD.unpack_from(frame)
    fields = {"magic": magic, "identity": identity, "ring": ring, "place": place, "chunk": chunk} | head
    changed = bytearray(frame)
    chunks._HEAD.pack_into(changed, 0, *fields.values())
    chunks._CHECK.pack_into(changed, 28, chunks._check(memoryview(changed)))
    return changed


FOREIGN = {
    "another program": (lambda f, p: bytearray(b"GET / HTTP/1.1\r\n\r\n" + bytes(40)), "something else"),
    "nothing": (lambda f, p: bytearray(), "something else"),
    "another version": (lambda f, p: damaged(f, p, magic=b"VXC\xff"), "protocol version"),
    "another sum": (lambda f, p: damaged(f, p, identity=bytes(16)), "of another study"),
    "another ring": (lambda f, p: damaged(f, p, ring=1), "a ring below 1"),
    "not my predecessor": (lambda f, p: damaged(f, p, place=2), "expected one from researcher"),
    "my own": (lambda f, p: damaged(f, p, place=1), "expected one from researcher"),
    "a chunk too many": (lambda f, p: damaged(f, p, chunk=3), "a number below 3"),
    "the last chunk's number": (lambda f, p: damaged(f, p, chunk=2), "expected 40 bytes"),
    "a residue too few": (lambda f, p: damaged(f[:-8], p), "expected 56 bytes, got 48"),
    "a residue too many": (lambda f, p: damaged(f + bytes(8), p), "expected 56 bytes, got 64"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_chunks_are_refused_and_change_nothing(name: str) -> None:
    make, error = FOREIGN[name]
    plan, values = agreed(Limbs(1, 7), 100), {"a": [1] * 7, "b": [2] * 7, "c": [-3] * 7}
    master, members = ChunkMaster(plan, secrets.token_bytes), members_of(plan, values)
    for chunk in range(plan.count):
        frame = frame_of(plan, master, 0, chunk)
        if chunk == 0:
            foreign = make(bytearray(frame), plan)
            before = bytes(foreign)
            with pytest.raises(RemoteProtocolError, match=error):
                members["b"].receive(memoryview(foreign))
            assert foreign == before
        master.receive(memoryview(go_round(plan, members, frame, 0)))
    assert master.total.tolist() == [0] * 7


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_flipped_bit_is_found_and_no_error_tells_a_residue(data: st.DataObject) -> None:
    plan = agreed(Limbs(2, 3), 100)
    master, member = ChunkMaster(plan, secrets.token_bytes), ChunkMember(plan, "b", [1, 2, 3], secrets.token_bytes)
    frame = frame_of(plan, master, 0, 0)
    broken = bytearray(frame)
    broken[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(RemoteProtocolError) as refused:
        member.receive(memoryview(broken))
    assert frame[HEAD_BYTES : HEAD_BYTES + 8].hex() not in str(refused.value)
    member.receive(memoryview(frame))


@given(st.binary(max_size=100))
def test_whatever_comes_is_refused(junk: bytes) -> None:
    plan = agreed(Limbs(1, 3), 100)
    member = ChunkMember(plan, "b", [1, 2, 3], secrets.token_bytes)
    for frame in (junk, chunks._MAGIC + junk):
        with pytest.raises(RemoteProtocolError):
            member.receive(memoryview(bytearray(frame)))


@pytest.mark.parametrize(
    "change",
    [
        {"digest": bytes(32)},
        {"session": bytes(16)},
        {"name": "sdsum"},
        {"residues": Limbs(2, 7)},
        {"residues": Limbs(1, 8)},
        {"chunk": 2},
    ],
)
def test_members_with_other_settings_refuse_each_other(change: dict) -> None:
    settings = {"residues": Limbs(1, 7), "bound": 100, "chunk": 3}
    plan, other = agreed(**settings), agreed(**(settings | change))
    values = [0] * other.agreed.residues.slots
    member = ChunkMember(other, "b", values, secrets.token_bytes)
    with pytest.raises(RemoteProtocolError, match="another study, coin, session, sum or length"):
        member.receive(memoryview(frame_of(plan, ChunkMaster(plan, secrets.token_bytes), 0, 0)))


def test_a_second_different_chunk_in_the_place_of_one_is_refused() -> None:
    plan, values = agreed(Limbs(1, 4), 100), {"a": [1] * 4, "b": [2] * 4, "c": [3] * 4}
    master, members = ChunkMaster(plan, secrets.token_bytes), members_of(plan, values)
    first = frame_of(plan, master, 0, 0)
    second = damaged(bytearray(first[:-1] + bytes([first[-1] ^ 1])), plan)
    assert second != first
    kept = bytes(first)
    go_round(plan, members, first, 0)
    with pytest.raises(RemoteProtocolError, match="a second, different one"):
        members["b"].receive(memoryview(second))
    early = bytearray(first)
    with pytest.raises(RemoteProtocolError, match="before the master has sent"):
        ChunkMaster(plan, secrets.token_bytes).receive(memoryview(early))
    master.receive(memoryview(first))
    with pytest.raises(RemoteProtocolError, match="a second, different one"):
        master.receive(memoryview(damaged(bytearray(first[:-1] + bytes([first[-1] ^ 1])), plan)))
    with pytest.raises(LocalProtocolError, match="1 are missing"):
        _ = master.total
    assert bytes(frame_of(plan, master, 0, 0)) == kept  # the master repeats itself, byte by byte
    master.receive(memoryview(go_round(plan, members, frame_of(plan, master, 0, 1), 0)))
    assert master.total.tolist() == [6] * 4


def test_a_residue_that_is_not_below_the_modulus_is_refused() -> None:
    plan = agreed(Integers(601, 1), 100)
    frame = bytearray(plan.frame_bytes(0))
    frame[HEAD_BYTES:] = (601).to_bytes(2, "big")
    plan.stamp(memoryview(frame), 0, RESEARCHER, 0)
    member = ChunkMember(plan, "b", [1], secrets.token_bytes)
    with pytest.raises(RemoteProtocolError, match="below the modulus"):
        member.receive(memoryview(frame))
    assert not member.done


# The keystream.


def expanded(key: bytes, chunk: int, count: int) -> bytes:
    """AES-256 in counter mode from its definition: the cipher of each counter, chunk · 2^64 and on, one by one."""
    block = Cipher(AES(key), ECB()).encryptor()  # noqa: S305, the definition
    blocks = (block.update((chunk * 2**64 + i).to_bytes(16, "big")) for i in range(-(-count // 16)))
    return b"".join(blocks)[:count]


@pytest.mark.parametrize("count", [1, 16, 17, 5000])
def test_the_keystream_is_aes_in_counter_mode_from_any_chunk(count: int) -> None:
    key = secrets.token_bytes(32)
    stream = Keystream(lambda size: key[:size])
    for chunk in (0, 1, 7, 2**32 - 1):
        assert stream.chunk(chunk)(count) == expanded(key, chunk, count)
        source, buffer = stream.chunk(chunk), bytearray(count)
        assert source(16) == expanded(key, chunk, 16)
        source.into(memoryview(buffer))
        assert buffer == expanded(key, chunk, 16 + count)[16:]
    assert len(Keystream(secrets.token_bytes).chunk(0)(2**18 + 5)) == 2**18 + 5


def test_every_pair_of_key_and_counter_is_used_for_one_purpose_alone_and_chunks_are_blinded_by_it(monkeypatch) -> None:
    """All streams that the members of two sums expand: who, which key, which counters, for which ring and purpose."""
    used: list[tuple[str, bytes, int]] = []
    purposes: dict[bytes, tuple] = {}

    class Watched(Keystream):
        def __init__(self, random):
            self.key = random(32)
            super().__init__(lambda size: self.key[:size])
            purposes.setdefault(self.key, (len(purposes),))

        def chunk(self, number):
            source, key = super().chunk(number), self.key

            class Source:
                def __call__(self, count):
                    used.extend((key, number * 2**64 + i) for i in range(-(-count // 16)))
                    return source(count)

                def into(self, buffer):
                    buffer[:] = self(len(buffer))

            return Source()

    monkeypatch.setattr(chunks, "Keystream", Watched)
    every_key, slots, count = [], 10, 4
    for session in (bytes(16), bytes([1] * 16)):
        keys: dict[str, list[bytes]] = {name: [] for name in RING.members}

        def source(name: str, keys=keys) -> Callable[[int], bytes]:
            def random(count: int) -> bytes:
                assert count == 32
                keys[name].append(secrets.token_bytes(count))
                return keys[name][-1]

            return random

        plan = agreed(Limbs(2, slots), 10 * 2**64, chunk=3, rings=3, session=session)
        assert plan.count == count
        values = {name: [i * 2**64 for i in range(slots)] for name in "abc"}
        members = {name: ChunkMember(plan, name, mine, source(name)) for name, mine in values.items()}
        master = ChunkMaster(plan, source(RESEARCHER))
        assert {name: len(own) for name, own in keys.items()} == {RESEARCHER: 5, "a": 2, "b": 2, "c": 2}
        every_key += [key for own in keys.values() for key in own]
        for ring, chunk in product(range(3), range(count)):
            used.clear()
            frame = frame_of(plan, master, ring, chunk)
            # The frame is blind plus share, both expanded here once more from the definition; the master's value is 0.
            shares, blinds = keys[RESEARCHER][:2], keys[RESEARCHER][2:]
            size = len(frame) - HEAD_BYTES
            piece = plan.residues(chunk)
            expected = piece.decode(expanded(blinds[ring], chunk, size))
            if ring < 2:
                piece.add(expected, piece.decode(expanded(shares[ring], chunk, size)))
            else:
                for key in shares:
                    piece.subtract(expected, piece.decode(expanded(key, chunk, size)))
            assert frame[HEAD_BYTES:] == piece.encode(expected)
            # Nothing else was expanded, and each counter once.
            wanted = {blinds[ring], *([shares[ring]] if ring < 2 else shares)}
            assert {key for key, _ in used} == wanted
            assert all(counter >> 64 == chunk for _, counter in used)
            assert max(Counter(used).values()) == 1
            master.receive(memoryview(go_round(plan, members, frame, ring)))
        assert list(master.total) == plain(values)
    assert len(set(every_key)) == len(every_key) == len(purposes)


# Views: the enumeration of `test_views`, for chunks.


class Scripted:
    """A stream whose chunks are given."""

    left: ClassVar[list[Callable[[int], bytes]]] = []

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self.chunk = self.left.pop(0)


def views(values: dict[str, list[int]], blinds: Sequence[list[int]], modulus: int) -> dict[str, tuple]:
    """What each member receives of two slots in chunks of one, on one ring."""
    plan = agreed(Integers(modulus, 2), 1, chunk=1)
    Scripted.left = [lambda chunk, own=own: lambda size: bytes([own[chunk]]) for own in blinds]
    master = ChunkMaster(plan, lambda size: b"")
    members = {name: ChunkMember(plan, name, mine, lambda size: b"") for name, mine in values.items()}
    seen: dict[str, list] = {name: [] for name in RING.members}
    for chunk in range(2):
        frame = frame_of(plan, master, 0, chunk)
        for name in RING.members[1:]:
            seen[name].append(frame[-1])
            members[name].receive(memoryview(frame))
        seen[RESEARCHER] += [frame[-1], blinds[0][chunk]]
        master.receive(memoryview(frame))
    assert list(master.total) == plain(values)
    return {name: tuple(one) for name, one in seen.items()}


def leaks(monkeypatch, blinds_of: Callable[[tuple[int, int]], list[int]]) -> bool:
    monkeypatch.setattr(chunks, "Keystream", Scripted)
    modulus, by_total = 7, {}
    for a, b, c in product(((0, 0), (1, -1), (1, 1)), repeat=3):
        seen: dict[str, Counter] = {name: Counter() for name in RING.members}
        for drawn in product(range(modulus), repeat=2):
            for name, one in views({"a": [*a], "b": [*b], "c": [*c]}, [blinds_of(drawn)], modulus).items():
                seen[name][one] += 1
        master = seen.pop(RESEARCHER)
        if any(set(counts.values()) != {1} or len(counts) != modulus**2 for counts in seen.values()):
            return True
        total = (a[0] + b[0] + c[0], a[1] + b[1] + c[1])
        if by_total.setdefault(total, master) != master:
            return True
    return False


def test_members_see_uniform_residues_in_every_chunk_whatever_the_inputs_and_the_master_only_the_total(
    monkeypatch,
) -> None:
    assert not leaks(monkeypatch, list)


def test_the_enumeration_finds_planted_leaks(monkeypatch) -> None:
    assert leaks(monkeypatch, lambda drawn: [0, 0])  # no blind
    assert leaks(monkeypatch, lambda drawn: [drawn[0], drawn[0]])  # the stream of one chunk again for the next
    assert leaks(monkeypatch, lambda drawn: [drawn[0], 0])  # the last chunk left bare


@pytest.mark.parametrize("k", [3, 5])
def test_more_parties_on_all_their_rings(k: int) -> None:
    names = "abcde"[:k]
    rings = rings_of(bytes(32), list(names), k - 1)
    plan = ChunkedSum(SecureSum(DIGEST, SESSION, "sum", rings, Limbs(1, 1000), 2**50), 100)
    draw = np.random.default_rng(k)
    values = {name: draw.integers(-(2**50), 2**50, 1000) for name in names}
    assert (run(plan, values).total == sum(values.values())).all()
    assert plan.window == 2 * (k + 1)
