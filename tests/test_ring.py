"""The ring core: order, residues, frames, one secure sum, views and simulators, disclosure.

``naive_*`` below is written from the definitions with plain integers and bytes, and is what the golden vectors in
``vectors/ring.json`` were made with; run this file as a script to make them again.
"""

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import combinations, product
from pathlib import Path
from random import Random
from typing import get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxring.errors import BoundError, LocalProtocolError, RemoteProtocolError, StudyError
from voxring.ring import order
from voxring.ring.disclosure import components, disclosure, leaking_coalition
from voxring.ring.message import MESSAGES, SUMS, Kind, Message, decode, encode
from voxring.ring.order import Ring, connectivity, rings_of
from voxring.ring.protocol import Master, Member, SecureSum
from voxring.ring.residues import Integers, Limbs, Residues, residues_mod
from voxring.ring.sheet import Section, moduli, sheet
from voxring.ring.views import Received, View, describe, simulate_master, simulate_member
from voxring.session.plan import Plan
from voxring.statistics import layout
from voxring.study import Study

VECTORS = Path(__file__).parent / "vectors" / "ring.json"
DIGEST, SESSION = bytes(range(32)), bytes(range(16))
RING = Ring(("researcher", "b", "a", "c"))
OTHER_RING = Ring(("researcher", "c", "b", "a"))


# The definitions, naively.


def naive_rings(coin: bytes, parties: list[str], collusion: int) -> list[list[str]]:
    """Places by Fisher and Yates with 64-bit draws from SHAKE-256 blocks of 64 draws, rejecting what would be biased;
    then Walecki's zigzag, turned, until no set of members of that size parts the others."""
    names, position = sorted(parties), 0
    for i in reversed(range(1, len(names))):
        while True:
            block, offset = divmod(position, 64)
            seed = b"voxring ring order 2|" + coin + block.to_bytes(4, "big")
            draw = int.from_bytes(hashlib.shake_256(seed).digest(512)[8 * offset : 8 * offset + 8], "big")
            position += 1
            if draw < 2**64 - 2**64 % (i + 1):
                break
        j = draw % (i + 1)
        names[i], names[j] = names[j], names[i]
    k, rings = len(names), []
    zigzag = [0, *(place for i in range(1, k) for place in (i, -i))][:k]
    while not rings or naive_connectivity(rings) <= collusion:
        rings.append(["researcher", *(names[(place + len(rings)) % k] for place in zigzag)])
    return rings


def naive_connectivity(rings: list[list[str]]) -> int:
    """Take away every set of members, small ones first, and see whether the rest hangs together."""
    edges = {frozenset(pair) for ring in rings for pair in zip(ring, [*ring[1:], ring[0]], strict=True)}
    for size in range(len(rings[0]) - 1):
        for gone in combinations(rings[0], size):
            left = set(rings[0]) - set(gone)
            reached = {min(left)}
            for _ in left:
                reached |= {name for edge in edges if edge <= left and edge & reached for name in edge}
            if reached != left:
                return size
    return len(rings[0]) - 1


def naive_frame(kind: str, sender: str, receiver: str, sum_name: str, ring: int, body: bytes) -> bytes:
    """A frame with its msgpack written by hand."""

    def text(s: str) -> bytes:
        return bytes([0xA0 | len(s)]) + s.encode() if len(s) < 32 else b"\xd9" + bytes([len(s)]) + s.encode()

    def binary(b: bytes) -> bytes:
        return b"\xc4" + bytes([len(b)]) + b if len(b) < 256 else b"\xc5" + len(b).to_bytes(2, "big") + b

    number = bytes([ring]) if ring < 128 else b"\xcc" + bytes([ring])
    fields = [text(kind), binary(DIGEST), binary(SESSION), text(sender), text(receiver), text(sum_name), number]
    payload = b"\x98" + b"".join(fields) + binary(body)
    return b"VXR\x05" + hashlib.blake2b(payload, digest_size=16, person=b"voxring frame").digest() + payload


def naive_run(modulus: int, values: list[list[int]], stream: bytes) -> dict:
    """Frames of a ring and its total; the master's value is 0 and its blind is drawn from the stream."""
    bits, slots = (modulus - 1).bit_length(), len(values[0])
    width, blind, at = -(-bits // 8), [], 0
    while len(blind) < slots:
        # Drawn in rounds, as many numbers as are still missing.
        for _ in range(slots - len(blind)):
            number = int.from_bytes(stream[at : at + width], "big") % 2**bits
            at += width
            blind += [number] if number < modulus else []
    running, frames = list(blind), []
    for sender, receiver, mine in zip(
        RING.members, [*RING.members[1:], "researcher"], [[0] * slots, *values], strict=True
    ):
        running = [(a + b) % modulus for a, b in zip(running, mine, strict=True)]
        body = b"".join(residue.to_bytes(width, "big") for residue in running)
        frames.append(naive_frame("share", sender, receiver, "sum", 0, body).hex())
    total = [sum(column) for column in zip(*values, strict=True)]
    return {"modulus": str(modulus), "values": values, "stream": stream[:at].hex(), "frames": frames, "total": total}


def naive_vectors() -> dict:
    """Everything in ``vectors/ring.json``."""
    stream = hashlib.shake_256(b"voxring test vectors").digest(4096)
    large = 3 * 10**20
    good = [
        naive_run(7, [[1], [-1], [1]], stream),
        naive_run(601, [[100, -100], [7, 0], [-3, 99]], stream),
        naive_run(6 * large + 1, [[large, -large, 5], [large, -large, -6], [large, -large, 7]], stream),
    ]
    head, body = "000102", (5).to_bytes(1, "big")
    frame = naive_frame("share", "researcher", "b", "sum", 0, body)
    bad = {
        "empty": ("", "something else"),
        "another program": (head, "something else"),
        "version 1": ((frame[:3] + b"\x01" + frame[4:]).hex(), "protocol version 5, got 1"),
        "a bit flipped": ((frame[:-1] + bytes([frame[-1] ^ 1])).hex(), "damaged"),
        "cut short": (frame[:-1].hex(), "damaged"),
        "longer than allowed": ((frame + bytes(2000)).hex(), "at most"),
        "unknown kind": (naive_frame("gift", "researcher", "b", "sum", 0, body).hex(), "fields"),
        "unknown sum": (naive_frame("share", "researcher", "b", "cubes", 0, body).hex(), "fields"),
        "a step without a number": (naive_frame("share", "researcher", "b", "step 0", 0, body).hex(), "fields"),
        "a step too many": (naive_frame("share", "researcher", "b", "step 100", 0, body).hex(), "fields"),
        "a step, not the sum": (naive_frame("share", "researcher", "b", "step 7", 0, body).hex(), "the sum"),
        "name too long": (naive_frame("share", "x" * 65, "b", "sum", 0, body).hex(), "fields"),
        "residue not below N": (naive_frame("share", "researcher", "b", "sum", 0, b"\x07").hex(), "below the modulus"),
        "two residues": (naive_frame("share", "researcher", "b", "sum", 0, b"\x01\x01").hex(), "expected 1 bytes"),
        "not my predecessor": (naive_frame("share", "a", "b", "sum", 0, body).hex(), "the sender"),
        "not for me": (naive_frame("share", "researcher", "a", "sum", 0, body).hex(), "the receiver"),
        "another ring": (naive_frame("share", "researcher", "b", "sum", 1, body).hex(), "a ring below 1"),
        "another sum": (naive_frame("share", "researcher", "b", "voxels", 0, body).hex(), "the sum"),
        "another kind": (naive_frame("poll", "researcher", "b", "sum", 0, body).hex(), "of kind"),
    }
    orders = []
    for k, collusion in ((3, 1), (3, 2), (4, 1), (5, 3), (5, 4), (6, 2), (7, 5)):
        coin = hashlib.sha256(bytes([k, collusion])).digest()
        rings = naive_rings(coin, list("abcdefgh"[:k]), collusion)
        orders.append({"coin": coin.hex(), "collusion": collusion, "rings": rings})
    return {
        "good": good,
        "bad": [{"name": name, "frame": frame, "error": error} for name, (frame, error) in bad.items()],
        "orders": orders,
    }


def scripted(stream: bytes) -> Callable[[int], bytes]:
    """A source of randomness that gives the bytes of a stream in turn, and no more."""
    left = bytearray(stream)

    def random(count: int) -> bytes:
        assert len(left) >= count
        piece = bytes(left[:count])
        del left[:count]
        return piece

    return random


def agreed(residues: Residues, bound: int, *, rings: tuple[Ring, ...] = (RING,), name: str = "sum") -> SecureSum:
    return SecureSum(DIGEST, SESSION, name, rings, residues, bound)


def run(secure_sum: SecureSum, values: dict[str, list], random=secrets.token_bytes) -> tuple[Master, dict[str, Member]]:
    """Send every share round every ring; the master's value is values['researcher'] or 0."""
    master = Master(secure_sum, values.get("researcher", [0] * secure_sum.residues.slots), random)
    members = {name: Member(secure_sum, name, values[name], random) for name in values if name != "researcher"}
    for message in master.start():
        while message.receiver != "researcher":
            message = members[message.receiver].receive(decode(encode(message), limit=10**8))  # noqa: PLW2901
        master.receive(message)
    return master, members


# Golden vectors.


def test_vectors_are_what_the_definitions_give() -> None:
    assert json.loads(VECTORS.read_text()) == json.loads(json.dumps(naive_vectors()))


@pytest.mark.parametrize("vector", json.loads(VECTORS.read_text())["good"] if VECTORS.exists() else [])
def test_ring_sends_the_frames_of_the_vectors(vector: dict) -> None:
    modulus, values = int(vector["modulus"]), vector["values"]
    bound = max(abs(value) for row in values for value in row)
    secure_sum = agreed(Integers(modulus, len(values[0])), bound)
    master = Master(secure_sum, [0] * len(values[0]), scripted(bytes.fromhex(vector["stream"])))
    (message,) = master.start()
    frames = [encode(message).hex()]
    for name, mine in zip(RING.members[1:], values, strict=True):
        message = Member(secure_sum, name, mine, scripted(b"")).receive(message)
        frames.append(encode(message).hex())
    master.receive(message)
    assert frames == vector["frames"]
    assert master.total == vector["total"]


@pytest.mark.parametrize("vector", json.loads(VECTORS.read_text())["bad"] if VECTORS.exists() else [])
def test_bad_vectors_are_refused_and_change_nothing(vector: dict) -> None:
    secure_sum = agreed(Integers(7, 1), 1)
    member = Member(secure_sum, "b", [1], scripted(b""))
    with pytest.raises(RemoteProtocolError, match=vector["error"]):
        member.receive(decode(bytes.fromhex(vector["frame"]), limit=1000))
    assert member.state == "waiting"
    good = decode(naive_frame("share", "researcher", "b", "sum", 0, b"\x05"), limit=1000)
    assert member.receive(good).body == b"\x06"


@pytest.mark.parametrize("vector", json.loads(VECTORS.read_text())["orders"] if VECTORS.exists() else [])
def test_order_is_that_of_the_vectors(vector: dict) -> None:
    names = sorted(vector["rings"][0][1:], reverse=True)  # the order of the file does not matter
    rings = rings_of(bytes.fromhex(vector["coin"]), names, vector["collusion"])
    assert [list(ring.members) for ring in rings] == vector["rings"]


# Order.


def test_every_order_is_equally_likely() -> None:
    rings = (rings_of(hashlib.sha256(i.to_bytes(4, "big")).digest(), ["a", "b", "c"])[0] for i in range(6000))
    seen = Counter(ring.members[1:] for ring in rings)
    assert len(seen) == 6
    assert sum((count - 1000) ** 2 / 1000 for count in seen.values()) < 20.5  # chi², 5 degrees, p = 0.001


@pytest.mark.parametrize("names", [["a", "b"], [], ["a", "b", "b"], ["a", "b", "researcher"]])
def test_order_refuses_too_few_and_doubled_names(names: list[str]) -> None:
    with pytest.raises(StudyError, match="study: party"):
        rings_of(DIGEST, names)


NAMES = [f"p{i:02}" for i in range(64)]


def edges_of(rings: Sequence[Ring]) -> Counter:
    return Counter(frozenset((name, ring.successor(name))) for ring in rings for name in ring.members)


@pytest.mark.parametrize("k", range(3, 11))
def test_connectivity_of_every_threshold_is_that_of_trying_every_coalition(k: int) -> None:
    for collusion in range(1, k):
        rings = rings_of(DIGEST, NAMES[:k], collusion)
        union = edges_of(rings)
        assert connectivity(rings) == min(naive_connectivity([list(ring.members) for ring in rings]), k)
        assert connectivity(rings) >= collusion + 1
        assert len(rings) == collusion // 2 + 1  # the fewest, since each ring adds two neighbours at most
        assert all(set(ring.members) == {"researcher", *NAMES[:k]} for ring in rings)
        assert all(ring.master == "researcher" for ring in rings)
        assert len({ring.last for ring in rings}) == len(rings)  # the session relies on it
        if len(rings) <= k // 2:
            assert set(union.values()) == {1}  # no site has the same neighbour twice
        else:
            assert k % 2 == 1
            assert len(union) == (k + 1) * k // 2
    with pytest.raises(StudyError, match=f"got {k}: the largest reachable is {k - 1}"):
        rings_of(DIGEST, NAMES[:k], k)


@given(st.integers(4, 9), st.integers(1, 4), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_connectivity_of_random_rings_is_that_of_trying_every_coalition(k: int, q: int, draw: Random) -> None:
    rings = [["researcher", *draw.sample(NAMES[: k - 1], k - 1)] for _ in range(q)]
    assert connectivity([Ring(tuple(ring)) for ring in rings]) == naive_connectivity(rings)


def test_rings_that_cross_at_the_same_two_places_are_parted_there_whatever_the_neighbours() -> None:
    first, second = (Ring(("researcher", *names)) for names in ("abcdefg", "bacdfeg"))
    assert min(len({e for e in edges_of([first, second]) if name in e}) for name in first.members) == 3
    assert connectivity([first, second]) == naive_connectivity([list(first.members), list(second.members)]) == 2


def test_rings_that_do_not_reach_the_threshold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "_walecki", lambda parties: [list(range(parties))] * parties)
    assert len(rings_of(DIGEST, NAMES[:6], 1)) == 1
    with pytest.raises(StudyError, match="no rings of 6 parties stand 2 colluders"):
        rings_of(DIGEST, NAMES[:6], 2)


@pytest.mark.parametrize(("k", "collusion"), [(64, 1), (64, 2), (64, 33), (64, 63), (63, 62), (33, 17)])
def test_up_to_64_parties_get_their_threshold(k: int, collusion: int) -> None:
    rings = rings_of(DIGEST, NAMES[:k], collusion)
    assert connectivity(rings) == min(2 * len(rings), k) > collusion
    study = Study.of(
        name="t", classes={"x": 1}, party=[{"name": n} for n in NAMES[:k]], privacy={"collusion": collusion}
    )
    assert study.privacy.collusion == collusion


@pytest.mark.parametrize("k", [3, 4, 7, 64])
def test_the_study_refuses_the_threshold_that_rings_cannot_reach(k: int) -> None:
    party = [{"name": name} for name in NAMES[:k]]
    Study.of(name="t", classes={"x": 1}, party=party, privacy={"collusion": k - 1})
    with pytest.raises(StudyError, match=f"collusion: .* got {k}: the largest reachable is {k - 1}"):
        Study.of(name="t", classes={"x": 1}, party=party, privacy={"collusion": k})


# Residues.


@given(st.data())
@settings(max_examples=150)
def test_ring_total_equals_plain_sum(data: st.DataObject) -> None:
    slots = data.draw(st.sampled_from([1, 2, 17]))
    bound = data.draw(st.sampled_from([1, 2, 1000, 2**31, 2**62, 10**30, 2**130]))
    value = st.one_of(st.sampled_from([-bound, bound, 0, 1, -1]), st.integers(-bound, bound))
    names = ["a", "b", "c", "researcher"][: data.draw(st.sampled_from([3, 4]))]
    values = {name: data.draw(st.lists(value, min_size=slots, max_size=slots)) for name in names}
    if "researcher" in values:
        values["researcher"] = [0] * slots
    exact = Integers(6 * bound + 1, slots)
    limbs = Limbs((6 * bound + 1).bit_length() // 64 + 1, slots)
    rings = data.draw(st.sampled_from([(RING,), (RING, OTHER_RING), (RING, OTHER_RING, RING)]))
    plain = [sum(column) for column in zip(*values.values(), strict=True)]
    for residues in (exact, limbs):
        master, members = run(agreed(residues, bound, rings=rings), values)
        assert master.total == plain
        assert {member.state for member in members.values()} == {"done"}


def test_ring_total_equals_plain_sum_for_thousands_of_slots() -> None:
    rng = np.random.default_rng(1)
    arrays = {name: rng.integers(-(2**62), 2**62, 5000) for name in "abc"}
    plain = [sum(column) for column in zip(*(array.tolist() for array in arrays.values()), strict=True)]
    for residues in (Integers(6 * 2**62 + 1, 5000), Limbs(2, 5000)):
        master, _ = run(agreed(residues, 2**62), dict(arrays))
        assert master.total == plain


@given(st.integers(1, 4), st.data())
@settings(max_examples=150)
def test_limbs_add_and_subtract_as_integers_do(limbs: int, data: st.DataObject) -> None:
    n = 2 ** (64 * limbs)
    edge = st.sampled_from([0, 1, 2**64 - 1, 2**64 % n, n - 1, n // 2, n // 2 - 1])
    numbers = st.lists(st.one_of(edge, st.integers(0, n - 1)), min_size=3, max_size=3)
    a, b = data.draw(numbers), data.draw(numbers)
    form = Limbs(limbs, 3)

    def planes(numbers: list[int]):
        columns = [[(number >> (64 * limb)) % 2**64 for number in numbers] for limb in range(limbs)]
        return np.array(columns, np.uint64)

    assert form.tolist(form.add(planes(a), planes(b))) == [(x + y) % n for x, y in zip(a, b, strict=True)]
    assert form.tolist(form.subtract(planes(a), planes(b))) == [(x - y) % n for x, y in zip(a, b, strict=True)]
    assert form.tolist(form.decode(form.encode(planes(a)))) == a
    assert form.centred(planes(a)) == [x - n if x > n // 2 else x for x in a]


@pytest.mark.parametrize("residues", [Integers(601, 2), Limbs(1, 2), Limbs(2, 2)])
@pytest.mark.parametrize("values", [[101, 0], [0, -101], np.array([0, 101]), [2**80, 0]])
def test_a_value_beyond_the_bound_is_refused_before_anything_is_sent(residues: Residues, values: list) -> None:
    with pytest.raises(BoundError) as refused:
        Member(agreed(residues, 100), "a", values, secrets.token_bytes)
    assert "101" not in str(refused.value)
    assert str(2**80) not in str(refused.value)


@pytest.mark.parametrize("residues", [Integers(601, 2), Limbs(2, 2)])
def test_residues_refuse_a_wrong_number_of_values_or_bytes(residues: Residues) -> None:
    with pytest.raises(LocalProtocolError, match="2 slots was given 3"):
        residues.lift([1, 2, 3], 100)
    with pytest.raises(RemoteProtocolError, match=f"expected {2 * residues.width} bytes, got 1"):
        residues.decode(b"1")


def test_residues_mod_takes_limbs_for_powers_of_2_to_the_64_only() -> None:
    assert isinstance(residues_mod(2**64, 1), Limbs)
    assert residues_mod(2**128, 1).width == 16
    assert isinstance(residues_mod(2**65, 1), Integers)
    assert isinstance(residues_mod(2**64 + 1, 1), Integers)
    for make in (lambda: Integers(1, 1), lambda: Integers(5, 0), lambda: Limbs(0, 1), lambda: Limbs(1, 0)):
        with pytest.raises(LocalProtocolError):
            make()


def test_uniform_rejects_and_is_exactly_uniform() -> None:
    # All 2^16 pairs of bytes with the first draw kept or rejected: mod 5 out of 3 bits, each residue once per 8.
    kept = Counter(Integers(5, 1).uniform(scripted(bytes([byte, 3])))[0] for byte in range(256) if byte & 7 < 5)
    assert set(kept.values()) == {32}
    assert all(Integers(5, 1).uniform(scripted(bytes([byte, 3]))) == [3] for byte in range(256) if byte & 7 >= 5)


# The protocol.


def test_the_modulus_must_hold_the_sum() -> None:
    agreed(Integers(601, 1), 100)
    with pytest.raises(LocalProtocolError, match="too small"):
        agreed(Integers(600, 1), 100)
    with pytest.raises(LocalProtocolError, match="same members"):
        agreed(Integers(601, 1), 100, rings=(RING, Ring(("researcher", "a", "b", "d"))))


@pytest.mark.parametrize(
    "change",
    [
        {"digest": bytes(32)},
        {"session": bytes(16)},
        {"sender": "a"},
        {"sender": "researcher"},
        {"receiver": "b"},
        {"sum": "sdsum"},
        {"ring": 1},
        {"kind": "poll"},
        {"body": b""},
        {"body": b"\xff\xff\xff\xff"},
    ],
)
def test_what_does_not_fit_is_refused_and_never_changes_the_result(change: dict) -> None:
    secure_sum = agreed(Integers(601, 2), 100)
    values = {"a": [1, -2], "b": [30, 40], "c": [-100, 100]}
    master = Master(secure_sum, [0, 0], secrets.token_bytes)
    members = {name: Member(secure_sum, name, mine, secrets.token_bytes) for name, mine in values.items()}
    (message,) = master.start()
    for receiver in [*(members[name] for name in RING.members[1:]), master]:
        wrong = {key: value for key, value in change.items() if getattr(message, key) != value}
        if wrong:
            with pytest.raises(RemoteProtocolError) as refused:
                receiver.receive(msgspec.structs.replace(message, **wrong))
            assert message.body.hex() not in str(refused.value)
        message = receiver.receive(message)
    assert master.total == [-69, 138]


def test_a_repeat_gets_the_same_answer_and_another_in_its_place_is_refused() -> None:
    secure_sum = agreed(Integers(601, 1), 100)
    master, member = Master(secure_sum, [0], secrets.token_bytes), Member(secure_sum, "b", [5], secrets.token_bytes)
    early = secure_sum.share(0, "c", [7])
    with pytest.raises(RemoteProtocolError, match="before the master"):
        master.receive(early)
    with pytest.raises(LocalProtocolError, match="every ring is back"):
        _ = master.total
    (first,) = master.start()
    with pytest.raises(LocalProtocolError, match="started once"):
        master.start()
    answer = member.receive(first)
    assert member.receive(first) == answer
    with pytest.raises(RemoteProtocolError, match="a second, different message"):
        member.receive(msgspec.structs.replace(first, body=(int.from_bytes(first.body, "big") ^ 1).to_bytes(2, "big")))
    back = secure_sum.share(0, "c", secure_sum.residues.decode(answer.body))
    master.receive(back)
    master.receive(back)
    with pytest.raises(RemoteProtocolError, match="a second, different message"):
        master.receive(early)
    assert master.total == [5]


@given(st.binary(max_size=200))
def test_decode_refuses_or_returns_whatever_comes(frame: bytes) -> None:
    for candidate in (frame, b"VXR\x05" + frame):
        with pytest.raises(RemoteProtocolError):
            decode(candidate, limit=150)


@given(st.data())
def test_frames_survive_the_way_and_any_flipped_bit_is_found(data: st.DataObject) -> None:
    message = Message(
        kind="share",
        digest=DIGEST,
        session=SESSION,
        sender="a",
        receiver="b",
        sum="sum",
        body=data.draw(st.binary(max_size=40)),
    )
    frame = bytearray(encode(message))
    assert decode(bytes(frame), limit=1000) == message
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(RemoteProtocolError):
        decode(bytes(frame), limit=1000)


# Views: every blind is tried, so "uniform" is a count and no statistic.

N, BOUND = 7, 1
TWO_SUMS = ("voxels", "sum")
PartyViews = dict[str, Counter]
Coins = Callable[[tuple[int, int]], list[Callable[[int], bytes]]]


def fresh(blinds: tuple[int, int]) -> list[Callable[[int], bytes]]:
    return [scripted(bytes([blind])) for blind in blinds]


def views_over_all_blinds(values: dict[str, list[int]], coins: Coins) -> PartyViews:
    """Two sums of one session for every pair of blinds: how often each role receives each pair of residues."""
    seen: PartyViews = {name: Counter() for name in RING.members}
    for blinds in product(range(N), repeat=2):
        received: dict[str, list[int]] = {name: [] for name in RING.members}
        for name, slot, random in zip(TWO_SUMS, range(2), coins(blinds), strict=True):
            mine = {party: [numbers[slot]] for party, numbers in values.items()}
            master, members = run(agreed(Integers(N, 1), BOUND, name=name), mine, random)
            for party, member in members.items():
                received[party] += member.received[0]
            received["researcher"] += [*master.received[0], *master.blinds[0]]
        for party, residues in received.items():
            seen[party][tuple(residues)] += 1
    return seen


def leaks(coins: Coins) -> bool:
    """Whether any member's view over all blinds is not exactly uniform for any inputs, or the master's depends on more
    than the totals."""
    by_total: dict[tuple[int, int], Counter] = {}
    for a, b, c in product(((0, 0), (1, -1), (-1, 1), (1, 1)), repeat=3):
        seen = views_over_all_blinds({"a": [*a], "b": [*b], "c": [*c]}, coins)
        master = seen.pop("researcher")
        if any(set(counts.values()) != {1} or len(counts) != N**2 for counts in seen.values()):
            return True
        total = (a[0] + b[0] + c[0], a[1] + b[1] + c[1])
        if by_total.setdefault(total, master) != master:
            return True
    return False


def test_members_see_exactly_uniform_residues_whatever_the_inputs_and_the_master_only_the_total() -> None:
    assert not leaks(fresh)


def test_the_leak_checker_finds_planted_leaks() -> None:
    assert leaks(lambda blinds: [scripted(b"\0"), scripted(b"\0")])  # no blind
    assert leaks(lambda blinds: [scripted(bytes([blinds[0]])) for _ in TWO_SUMS])  # the blind of the first sum again
    assert leaks(lambda blinds: [scripted(bytes([blind % 3])) for blind in blinds])  # a blind from a part of [0, N)


def test_simulators_draw_the_same_views_from_own_input_and_output_alone() -> None:
    values = {"a": [1, 0], "b": [-1, 1], "c": [1, 1]}
    real = views_over_all_blinds(values, fresh)
    residues = Integers(N, 1)
    simulated: Counter = Counter()
    simulated_master: Counter = Counter()
    for blinds in product(range(N), repeat=2):
        member, master = [], []
        for name, total, random in zip(TWO_SUMS, [1, 2], fresh(blinds), strict=True):
            (seen,) = simulate_member(name, residues, 1, random)
            member += seen.residues
            (seen,) = simulate_master(name, residues, 1, [total], scripted(bytes([blinds[TWO_SUMS.index(name)]])))
            master += [*seen.residues, *seen.blind]
        simulated[tuple(member)] += 1
        simulated_master[tuple(master)] += 1
    assert real["a"] == real["b"] == real["c"] == simulated
    assert real["researcher"] == simulated_master


def test_simulated_master_of_two_rings_matches_real_views() -> None:
    residues, rings, values = Integers(N, 1), (RING, OTHER_RING), {"a": [1], "b": [-1], "c": [1]}
    secure_sum = agreed(residues, BOUND, rings=rings)
    real: Counter = Counter()
    simulated: Counter = Counter()
    for first, share, second in product(range(N), repeat=3):
        # The master's split and both blinds; one party's share is enough to make the split of the total uniform.
        random = scripted(bytes([0, first, second, share, 0, 0]))
        master, _ = run(secure_sum, values, random)
        real[tuple((*master.received[ring], *master.blinds[ring]) for ring in range(2))] += 1
        seen = simulate_master("sum", residues, 2, [1], scripted(bytes([first, share, second])))
        simulated[tuple((*one.residues, *one.blind) for one in seen)] += 1
    assert real == simulated
    assert len(simulate_member("sum", residues, 2, secrets.token_bytes)) == 2


def test_describe_says_what_was_seen_and_learned() -> None:
    big = Received("sum", 0, 2**90, (2**80, 1))
    text = describe(View("a", (Received("voxels", 0, 7, (5,)), big), {("n", "x"): 4, ("μ", "x"): Fraction(-1, 3**30)}))
    assert text.startswith("saw 2 ring messages, each uniform in [0, N): 0x5, …0000000000 …;")
    assert text.endswith("learned x: n = 4, μ = -4.85694e-15")
    assert describe(View("a")) == "saw no ring message; learned nothing"


# Disclosure.


def test_components_are_the_stretches_between_colluders() -> None:
    ring = Ring(("researcher", *"abcdef"))
    assert components([ring], []) == [frozenset(ring.members)]
    assert set(components([ring], ["a", "c"])) == {frozenset("b"), frozenset(["researcher", *"def"])}
    other = Ring(("researcher", *"cbedaf"))
    assert len(components([ring, other], ["a", "c"])) == 1  # b keeps e as a neighbour: a second ring helps


@pytest.mark.parametrize("k", range(3, 8))
def test_the_smallest_leaking_coalition_is_that_of_trying_all(k: int) -> None:
    for collusion in range(1, k):
        rings = rings_of(DIGEST, NAMES[:k], collusion)
        for size in range(1, k + 1):
            parting = [c for c in combinations(rings[0].members, size) if len(components(rings, c)) > 1]
            found = leaking_coalition(rings, size)
            assert (found is None) == (not parting)
            assert (found is None) == (not connectivity(rings) <= size <= k - 1)
            if found is not None:
                coalition, of = found
                assert len(coalition) == size
                assert frozenset([of]) in components(rings, coalition)
                assert size > connectivity(rings) or "researcher" not in coalition


def test_disclosure_is_plain_about_defaults_and_colluders() -> None:
    parties = [{"name": name} for name in "abc"]
    text = " ".join(disclosure(Study.of(name="t", classes={"x": 1}, party=parties)))
    assert "for a withheld class only n and the patient count" in text
    assert text.count("no protection") == 2
    assert "subtract its own" in text
    assert "round one ring" in text
    assert "No single member, the researcher included, learns" in text
    assert "2 that stand round a party" in text
    most = " ".join(disclosure(Study.of(name="t", classes={"x": 1}, party=parties, privacy={"collusion": 2})))
    assert "round 2 rings" in most
    assert "No 2 members, the researcher included, that put" in most
    assert "stand round" not in most
    strict = Study.of(name="t", classes={"x": 1}, privacy={"min_voxels": 50, "min_patients": 5})
    text = " ".join(disclosure(strict))
    assert "no protection" not in text
    assert "50" in text
    assert "names no parties yet" in text


def a_study(k: int = 5, **privacy: int) -> Study:
    party = [{"name": name} for name in NAMES[:k]]
    return Study.of(name="t", classes={"lesion": 1, "liver": 2}, party=party, privacy=privacy)


def section(study: Study, title: str) -> Section:
    (found,) = [section for section in sheet(study).sections if title in section.title]
    return found


def test_the_sheet_has_a_row_for_every_kind_of_message_and_every_sum() -> None:
    nyul = {"method": "nyul", "percentiles": (1.0, 50.0, 99.0), "landmarks": "agree"}
    more = {"statistics": {"gram": True}, "feature": [{"kind": "intensity"}], "logistic": {}}
    asking = Study.of(**msgspec.to_builtins(a_study()) | more | {"standardise": nyul})
    rows = [row[0] for row in section(asking, "Every message").rows]
    kinds = {kind for kind in get_args(Kind) if kind != "share"} | {f"share of {name}" for name in SUMS}
    assert set(rows) == kinds
    assert len(rows) == len(kinds)
    assert set(MESSAGES) == set(get_args(Kind))
    assert set(SUMS) == set(moduli(asking))
    assert set(moduli(a_study())) == set(SUMS) - {"statistics", "images", "landmarks", "step"}
    assert "share of statistics" not in [row[0] for row in section(a_study(), "Every message").rows]


def test_the_sheet_lists_additive_statistics_with_what_they_reveal() -> None:
    assert "Additive statistics" not in [one.title for one in sheet(a_study()).sections]
    tables = {
        "feature": [{"kind": "intensity"}, {"kind": "mean", "window": 3}],
        "statistics": {
            "gram": True,
            "moments": 3,
            "histogram": {"bins": 8, "range": (0.0, 1.0)},
            "glcm": {"levels": 4, "range": (0.0, 1.0)},
        },
    }
    privacy = {"min_voxels": 50, "min_patients": 5}
    study = Study.of(**msgspec.to_builtins(a_study(**privacy)) | tables)
    found = section(study, "Additive")
    assert [(row[0], row[1]) for row in found.rows] == [(block.name, str(block.size)) for block in layout(study)]
    assert "also learns 34 numbers" in found.sentences[0]
    assert not any("aise privacy" in sentence for sentence in found.sentences)
    for changed, warning in (
        ({"min_voxels": 3}, "A class of 3 voxels may be released and its powers tell the intensity of each"),
        ({"min_voxels": 33}, "A class of 33 voxels may be released with 34 numbers"),
        ({"min_patients": 1}, "All of them may come from one patient"),
    ):
        less = Study.of(**msgspec.to_builtins(a_study(**privacy | changed)) | tables)
        (sentence,) = (one for one in section(less, "Additive").sentences if "raise privacy" in one)
        assert sentence.startswith(warning)
    assert "sdsum and additive statistics of the one party left" in section(study, "colluders").rows[-1][2]
    assert "each of the four sums" in " ".join(section(study, "Every message").sentences)
    assert "each of the three sums" in " ".join(section(a_study(), "Every message").sentences)
    (said,) = (one for one in disclosure(study) if "also learns" in one)
    for words in ("sum of each feature (2 numbers)", "two features (3 numbers)", "histogram of the intensities (10 "):
        assert words in said
    plan = Plan(study, DIGEST)
    agreed = plan.statistics(SESSION, ["liver"])
    assert moduli(study)["statistics"] == (agreed.bound, agreed.residues.modulus)


@pytest.mark.parametrize(("k", "collusion"), [(3, 1), (3, 2), (5, 1), (5, 3), (5, 4), (6, 2), (6, 5)])
def test_the_sheet_says_from_which_size_on_a_coalition_learns_more(k: int, collusion: int) -> None:
    rows = section(a_study(k, collusion=collusion), "colluders").rows
    rings = rings_of(DIGEST, NAMES[:k], collusion)
    assert [row[0] for row in rows] == [str(size) for size in range(1, k + 1)]
    for size, row in enumerate(rows, 1):
        parting = any(len(components(rings, c)) > 1 for c in combinations(rings[0].members, size))
        assert (row[1] != "nothing") == parting
        assert size > collusion or row[1] == "nothing"
    assert rows[k - 2][2].startswith("n and sum (n·μ) of the one party left")
    assert "sum and sdsum of the one party left" in rows[k - 1][2]


def test_the_sheet_names_the_modulus_that_the_sums_use() -> None:
    study = a_study()
    rows = {row[0]: row for row in section(study, "modulus").rows}
    plan = Plan(study, DIGEST)
    finest = Fraction(1, study.denominator * 5 * study.bounds.voxels_per_party)
    used = {
        "voxels": plan.voxels(SESSION),
        "sum": plan.sums(SESSION, ["liver"]),
        "sdsum": plan.sdsums(SESSION, {"liver": finest}),
    }
    for name, agreed in used.items():
        power, exponent = rows[name][3].split("^")
        assert int(power) ** int(exponent) == agreed.residues.modulus == moduli(study)[name][1]
        assert agreed.bound == moduli(study)[name][0]


def test_the_sheet_depends_on_the_study_alone_and_bears_its_digest() -> None:
    for study in (a_study(), a_study(min_patients=5), Study.of(name="t", classes={"x": 1})):
        assert sheet(study) == sheet(Study.of(**msgspec.to_builtins(study)))
        assert sheet(study).digest == study.digest
    assert "does not withhold" in " ".join(section(a_study(), "imply").sentences)
    assert "5 withholds it" in " ".join(section(a_study(min_patients=5), "imply").sentences)
    nobody = Study.of(name="t", classes={"x": 1})
    assert not section(nobody, "colluders").rows
    assert "links are in the clear" in " ".join(section(nobody, "granted").sentences)
    assert "the fewest parties allowed, 3" in " ".join(section(nobody, "modulus").sentences)


def test_the_sheet_says_of_a_study_with_keys_that_its_links_are_sealed() -> None:
    keys = ["O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik=", "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w="]
    keys += ["gTl3Dqh9F19WoxJNmuAbh3gNcytWV6cOvO+DU3a7fhs=", "7UkoxijR1YZWVrzlPj1wB1vYHhN2pO24W+6eUdF5p74="]
    parties = [{"name": name, "key": key} for name, key in zip("abc", keys, strict=False)]
    study = Study.of(name="t", classes={"x": 1}, party=parties, researcher={"key": keys[3]})
    said = " ".join(section(study, "granted").sentences)
    assert "Every message and every answer is encrypted" in said
    assert "in the clear" not in said
    assert "relay" not in said
    relayed = Study.of(**msgspec.to_builtins(study) | {"relay": "tcp://relay.example:7000"})
    assert "Messages go through a relay" in " ".join(section(relayed, "granted").sentences)


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(naive_vectors(), indent=1) + "\n")
