"""Each fault planted into the ring core of long vectors must be found by a small battery of checks.

A fault is a line of the source replaced; modules are made anew with it, and the battery, which passes without, must not.
"""

import hashlib
import secrets
import sys
import types
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

import voxring.ring
from voxring.errors import BoundError, RemoteProtocolError, VoxringError
from voxring.ring.order import RESEARCHER, Ring

RINGS = (Ring((RESEARCHER, "b", "a", "c")), Ring((RESEARCHER, "c", "b", "a")))
MODULES = ("residues", "keystream", "protocol", "chunks")

FAULTS: dict[str, tuple[str, str, str]] = {
    # residues
    "a carry is lost": ("residues", "np.add(plane, carry, out=plane)", "pass"),
    "a carry does not run on": ("residues", "over |= carry & (plane == 0)", "pass"),
    "a borrow is lost": ("residues", "np.subtract(plane, borrow, out=plane)", "pass"),
    "a borrow does not run on": ("residues", "under |= borrow & (plane == 0)", "pass"),
    "the carry out of the last but one limb is not asked for": ("residues", "if limb < self.limbs", "if limb < self.limbs - 1"),
    "the sign is not repeated": ("residues", "planes[1:] = (low >> 63).view(np.uint64)", "planes[1:] = 0"),
    "a bound above alone": ("residues", "if (block > limit).any() or (block < -limit).any():", "if (block > limit).any():"),
    "a bound below alone": ("residues", "if (block > limit).any() or (block < -limit).any():", "if (block < -limit).any():"),
    "one bound above alone": ("residues", "-times * bound <= low and high <= times * bound", "high <= times * bound"),
    "the first block's bounds again": ("residues", "limit = times * bound[start : start + _BLOCK]", "limit = times * bound[: len(block)]"),
    "only the first block": ("residues", "for start in range(0, len(values), _BLOCK):", "for start in range(0, min(len(values), 1), _BLOCK):"),
    "the caller's values are changed": ("chunks", "self._vector = None if values is None else agreed.lifted(values)", "self._vector = None if values is None else agreed.residues.add(*[agreed.lifted(values)] * 2)"),
    "what came back replaces the total": ("residues", "self.add(to[:, slots], self._planes(body))", "to[:, slots] = self._planes(body)"),
    # keystream
    "chunks overlap": ("keystream", 'number.to_bytes(8, "big") + bytes(8)', '(number).to_bytes(16, "big")'),
    "every chunk has the same stream": ("keystream", 'number.to_bytes(8, "big") + bytes(8)', "bytes(16)"),
    "a key that everybody knows": ("keystream", "AES(random(KEY_BYTES))", "AES(bytes(KEY_BYTES))"),
    # chunks
    "one stream for all rings": ("chunks", "self._blinds = [Keystream(random) for _ in rings]", "self._blinds = [Keystream(random)] * len(rings)"),
    "shares and blinds from one stream": ("chunks", "self._blinds = [Keystream(random) for _ in rings]", "self._blinds = [*self._shares._uniform, Keystream(random)]"),
    "no blind": ("chunks", "residues.fill(body, self._blinds[ring].chunk(chunk))", "body[:] = bytes(len(body))"),
    "the blind of another chunk is taken off": ("chunks", "residues.subtract_at(self._total, self._plan.slots(chunk), body)", "residues.subtract_at(self._total, slice(0, residues.slots), body)"),
    "the value is not split": ("chunks", "residues.add_within(body, mine, others)", "residues.add_within(body, mine)"),
    "a share too few": ("chunks", "if ring < len(self._uniform):", "if ring < len(self._uniform) - 1:"),
    "the first chunk's slots again": ("chunks", "residues.part(self._vector, self._plan.slots(chunk))", "residues.part(self._vector, slice(0, residues.slots))"),
    "the last chunk is dropped": ("chunks", "return -(-self.agreed.residues.slots // self.length)", "return max(1, self.agreed.residues.slots // self.length)"),
    "the check is not looked at": ("chunks", "!= (_check(frame),)", "== ()"),
    "the check leaves the head out": ("chunks", "crc32(frame[: _HEAD.size])", "0"),
    "the check leaves the rest out": ("chunks", "crc32(frame[whole:], crc32(np.add", "(lambda _, crc: crc)(0, crc32(np.add"),
    "the check leaves the pieces out": ("chunks", "crc32(np.add.reduce(pieces, axis=1), crc32(frame[: _HEAD.size]))", "crc32(frame[: _HEAD.size])"),
    "any sender is taken": ("chunks", "if place != (members.index(me) - 1) % len(members):", "if False:"),
    "any sum is taken": ("chunks", "if identity != self.identity:", "if False:"),
    "sessions look alike": ("chunks", "agreed.digest + agreed.session + numbers", "agreed.digest + numbers"),
    "studies look alike": ("chunks", "agreed.digest + agreed.session + numbers", "agreed.session + numbers"),
    "a repeat counts twice": ("chunks", "return known == check", "return False"),
    "another chunk in the place of one is taken": ("chunks", "if known not in (check, _NOT_YET):", "if False:"),
    "chunks are not counted": ("chunks", "self._checks[ring][chunk] = check", "pass"),
    "the check of the answer is noted": ("chunks", "self._came.note(ring, chunk, check)\n        if not again:", "self._came.note(ring, chunk, *_CHECK.unpack_from(frame, _HEAD.size))\n        if not again:"),
    "the head is not written": ("chunks", "self._plan.stamp(frame, ring, self._me, chunk)\n        self._came", "self._came"),
    "chunks that were not sent are taken": ("chunks", "if not self._sent[ring, chunk]:\n            raise", "if False:\n            raise"),
    "a blind that is put on again is taken off again": ("chunks", "if not self._sent[ring, chunk]:\n            residues", "if True:\n            residues"),
    "a total beyond all bounds is told": ("protocol", "if not within(total, self.bound, self.parties):", "if False:"),
}  # fmt: skip


def made_with(monkeypatch: pytest.MonkeyPatch, fault: tuple[str, str, str] | None) -> ModuleType:
    """Make the modules anew, in the order in which they import each other, one with the fault."""
    folder = Path(voxring.ring.__file__).parent
    for name in MODULES:
        source = (folder / f"{name}.py").read_text(encoding="utf-8")
        if fault is not None and fault[0] == name:
            assert source.count(fault[1]) >= 1, "the line that the fault replaces is no longer there"
            source = source.replace(fault[1], fault[2])
        module = types.ModuleType(f"voxring.ring.{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(source, f"{name}.py", "exec"), module.__dict__)  # noqa: S102
    return sys.modules["voxring.ring.chunks"]


def refuses(error: type[Exception], work: Callable[[], object]) -> None:
    with pytest.raises(error):
        work()


class Battery:
    """Checks of one set of modules; each raises when it finds something."""

    def __init__(self, chunks: ModuleType) -> None:
        self.chunks, self.residues = chunks, sys.modules["voxring.ring.residues"]
        self.secure_sum = sys.modules["voxring.ring.protocol"].SecureSum

    def plan(self, residues, bound, *, chunk=12, rings=RINGS, digest=bytes(32), session=bytes(16)):
        return self.chunks.ChunkedSum(self.secure_sum(digest, session, "sum", rings, residues, bound), chunk)

    def frame(self, plan, master, ring: int, chunk: int) -> bytearray:
        frame = bytearray(plan.frame_bytes(chunk))
        master.fill(memoryview(frame), ring, chunk)
        return frame

    def members(self, plan, values):
        return {name: self.chunks.ChunkMember(plan, name, one, secrets.token_bytes) for name, one in values.items()}

    def run(self, plan, values, *, twice: bool = False):
        master, members = self.chunks.ChunkMaster(plan, secrets.token_bytes), self.members(plan, values)
        for ring, chunk in product(range(len(plan.agreed.rings)), reversed(range(plan.count))):
            frame = self.frame(plan, master, ring, chunk)
            if twice:
                assert self.frame(plan, master, ring, chunk) == frame
            for name in plan.agreed.rings[ring].members[1:]:
                before = bytes(frame)
                members[name].receive(memoryview(frame))
                if twice:
                    again = bytearray(before)
                    members[name].receive(memoryview(again))
                    assert again == frame
            again = bytearray(frame)
            master.receive(memoryview(frame))
            if twice:
                master.receive(memoryview(again))
        assert master.done
        assert all(member.done for member in members.values())
        return master

    def arithmetic(self) -> None:
        """Carries and borrows, where no random number hides them."""
        for limbs in (1, 2, 3):
            n, residues = 2 ** (64 * limbs), self.residues.Limbs(limbs, 1)
            edges = [0, 1, n - 1, n // 2, 2**64 % n, (2**64 - 1) % n, (n - 2**64) % n]
            for a, b in product(edges, repeat=2):
                one, other = (residues.lift([r - n if r >= n // 2 else r], n) for r in (a, b))
                assert residues.tolist(residues.add(residues.copy(one), other)) == [(a + b) % n]
                assert residues.tolist(residues.subtract(one, other)) == [(a - b) % n]

    def sums(self) -> None:
        for limbs in (1, 2, 3):
            most = (2 ** (64 * limbs) - 1) // 6
            edges = [most, -most, 0, 1, -1, most - 1, 2**63 % most, -(2**63 % most), 2**64 % most]
            values = {name: [edges[(i * step) % 9] for i in range(40)] for name, step in (("a", 1), ("b", 2), ("c", 5))}
            plain = [sum(column) for column in zip(*values.values(), strict=True)]
            for residues in (self.residues.Limbs(limbs, 40), self.residues.Integers(6 * most + 1, 40)):
                assert list(self.run(self.plan(residues, most), values, twice=True).total) == plain
        arrays = {name: np.arange(-20, 20) * step for name, step in (("a", 1), ("b", -7), ("c", 3))}
        kept = {name: array.copy() for name, array in arrays.items()}
        for limbs in (1, 2):
            assert (
                list(self.run(self.plan(self.residues.Limbs(limbs, 40), 140), arrays).total)
                == sum(kept.values()).tolist()
            )
        assert all((arrays[name] == kept[name]).all() for name in arrays)

    def bounds(self) -> None:
        slots = 40_000
        plan = self.plan(self.residues.Limbs(1, slots), np.arange(1, slots + 1))
        single = self.plan(self.residues.Limbs(1, slots), 5)
        for at, sign in product((0, slots - 1), (1, -1)):
            values = np.zeros(slots, np.int64)
            values[at] = sign * (at + 1)
            self.chunks.ChunkMember(plan, "a", values, secrets.token_bytes)
            values[at] += sign
            refuses(BoundError, lambda v=values: self.chunks.ChunkMember(plan, "a", v, secrets.token_bytes))
            values[at] = sign * 6
            refuses(BoundError, lambda v=values: self.chunks.ChunkMember(single, "a", v, secrets.token_bytes))

    def strangers(self) -> None:
        residues = self.residues.Limbs(1, 13)
        plan = self.plan(residues, 100)
        master, member = self.chunks.ChunkMaster(plan, secrets.token_bytes), self.members(plan, {"b": [1] * 13})["b"]
        frame = self.frame(plan, master, 0, 0)
        for at in (3, 6, 21, 23, 27, 29, 32, 95, 100, 127):
            broken = bytearray(frame)
            broken[at] ^= 1
            refuses(RemoteProtocolError, lambda b=broken: member.receive(memoryview(b)))
        for at in range(len(frame) - 32, len(frame)):
            broken = bytearray(frame)
            broken[at] ^= 16
            refuses(RemoteProtocolError, lambda b=broken: member.receive(memoryview(b)))
        for change in ({"session": bytes([1] * 16)}, {"digest": bytes([1] * 32)}):
            other = self.plan(residues, 100, **change)
            foreign = self.frame(other, self.chunks.ChunkMaster(other, secrets.token_bytes), 0, 0)
            refuses(RemoteProtocolError, lambda f=foreign: member.receive(memoryview(f)))
        wrong = bytearray(frame)
        plan.stamp(memoryview(wrong), 0, "a", 0)
        refuses(RemoteProtocolError, lambda: member.receive(memoryview(wrong)))
        member.receive(memoryview(bytearray(frame)))
        second = bytearray(frame)
        second[-1] ^= 1
        plan.stamp(memoryview(second), 0, RESEARCHER, 0)
        refuses(RemoteProtocolError, lambda: member.receive(memoryview(second)))
        early = bytearray(plan.frame_bytes(1))
        plan.stamp(memoryview(early), 0, "c", 1)
        refuses(RemoteProtocolError, lambda: master.receive(memoryview(early)))

    def totals(self) -> None:
        honest, other = (self.plan(self.residues.Limbs(1, 2), np.array([5, bound])) for bound in (5, 100))
        values = {"a": [0, 5], "b": [0, 5], "c": [0, 5]}
        master, members = self.chunks.ChunkMaster(honest, secrets.token_bytes), self.members(honest, values)
        members["c"] = self.chunks.ChunkMember(other, "c", [0, 6], secrets.token_bytes)
        for ring in range(2):
            frame = self.frame(honest, master, ring, 0)
            for name in honest.agreed.rings[ring].members[1:]:
                members[name].receive(memoryview(frame))
            master.receive(memoryview(frame))
        refuses(RemoteProtocolError, lambda: master.total)

    def blinds(self) -> None:
        """Every frame of the master's, and every share, against the streams of keys that this draws."""

        def expand(key: bytes, chunk: int, count: int) -> np.ndarray:
            start = (chunk << 64).to_bytes(16, "big")
            return np.frombuffer(Cipher(AES(key), CTR(start)).encryptor().update(bytes(count)), np.uint64)

        drawn: list[bytes] = []

        def random(count: int) -> bytes:
            drawn.append(hashlib.sha256(bytes([len(drawn)])).digest()[:count])
            return drawn[-1]

        plan = self.plan(self.residues.Limbs(1, 30), 100)
        master = self.chunks.ChunkMaster(plan, random)
        member = self.chunks.ChunkMember(plan, "b", np.arange(30), random)
        assert len(set(drawn)) == len(drawn) == 4  # the master's share, two blinds, the member's share
        share, first, second, mine = drawn
        for chunk in range(plan.count):
            for ring in range(2):
                frame = self.frame(plan, master, ring, chunk)
                size = len(frame) - 32
                came = expand((first, second)[ring], chunk, size)
                came = came + expand(share, chunk, size) if ring == 0 else came - expand(share, chunk, size)
                assert (np.frombuffer(frame[32:], np.uint64) == came).all()
                plan.stamp(memoryview(frame), ring, plan.agreed.rings[ring].predecessor("b"), chunk)
                member.receive(memoryview(frame))
                value = np.arange(30, dtype=np.uint64)[plan.slots(chunk)]
                own = expand(mine, chunk, size)
                came = came + own if ring == 0 else came + value - own
                assert (np.frombuffer(frame[32:], np.uint64) == came).all()

    def all(self) -> None:
        for check in (self.arithmetic, self.blinds, self.sums, self.bounds, self.strangers, self.totals):
            check()


def test_the_battery_finds_nothing_in_the_code_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    Battery(made_with(monkeypatch, None)).all()


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    battery = Battery(made_with(monkeypatch, FAULTS[name]))
    with pytest.raises((AssertionError, VoxringError, pytest.fail.Exception)):
        battery.all()
