"""Secure sums of long vectors: python bench/ring.py [--quick] [--only TEXT].

Every party is a process of its own, linked over the loopback address; the sum is checked before anything is timed; what
is compared runs in turn in one run, and medians are told. Prints tables and writes bench/results/ring.json.

a. processor and wall time for each slot against a ring of plain sockets that sends the same bytes and does the same
   additions; in the clear and sealed;
b. links of 25 MB/s and 10 ms: the time of the whole sum against the time that one such link takes for the vector;
c. peers: MPyC, TenSEAL, Flower's SecAgg+; those that are not installed are named and left out (PEERS_PYTHON names the
   interpreter that has them);
d. cost against the number of slots, its exponent, and the memory beyond the vector itself.
"""

import hashlib
import multiprocessing
import os
import socket
import statistics
import sys
import threading
import time
from pathlib import Path

import numpy as np

from voxring.net.streams import AesGcm, Streams
from voxring.ring.chunks import CHUNK_BYTES, ChunkedSum, ChunkMaster, ChunkMember
from voxring.ring.keystream import Keystream
from voxring.ring.order import RESEARCHER, Ring
from voxring.ring.protocol import SecureSum
from voxring.ring.residues import Limbs
from voxring.session.chunked import in_the_clear, lead, pass_on

RESULTS = Path(__file__).parent / "results" / "ring.json"
BOUND = 2**40


def names_of(k):
    return [f"p{i}" for i in range(k)]


def plan_of(k, slots, limbs):
    """One ring: the researcher as master with value 0, and k parties."""
    ring = Ring((RESEARCHER, *names_of(k)))
    return ChunkedSum(SecureSum(bytes(32), os.urandom(16), "sum", (ring,), Limbs(limbs, slots), BOUND))


def values_of(name, slots):
    return np.random.default_rng(sum(name.encode())).integers(-BOUND, BOUND, slots)


class Timer:
    """Wall and processor time of this process, and how much memory it took at most since."""

    def __enter__(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_):
        self.wall, self.cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu


# A process for each member.


def sealed_by(session):
    """Test keys, one for each stream of each sum; a real run takes them from its handshake."""

    def seal_of(sender, receiver, ring):
        return AesGcm(hashlib.sha256(f"{sender} {receiver} {ring} ".encode() + session).digest())

    return seal_of


class Member:
    """What one process does when it is told to."""

    def __init__(self, name, k):
        self.name, self.k = name, k
        self.values = self.planes = np.zeros(0)
        self.streams = Streams("tcp://127.0.0.1:0") if name != RESEARCHER else None
        self.listener = socket.create_server(("127.0.0.1", 0))

    def addresses(self):
        return self.streams.address if self.streams else "", self.listener.getsockname()

    def connect(self, raw_successor):
        self.out = socket.create_connection(raw_successor)
        self.inn, _ = self.listener.accept()
        for one in (self.out, self.inn):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def load(self, slots, limbs):
        """Make the vector, outside of any timing."""
        self.values = values_of(self.name, slots) if self.name != RESEARCHER else np.zeros(0, np.int64)

    def ours(self, plan, where, sealed):
        seal_of = sealed_by(plan.agreed.session) if sealed else in_the_clear
        if self.name == RESEARCHER:
            with Timer() as timer:
                master = ChunkMaster(plan, os.urandom)
                lead(plan, master, where, seal_of=seal_of)
                total = master.total if plan.agreed.residues.limbs == 1 else master.residues
            return timer.wall, timer.cpu, digest_of(total)
        with Timer() as timer:
            member = ChunkMember(plan, self.name, self.values, os.urandom)
            pass_on(plan, member, self.name, self.streams, where, seal_of=seal_of)
        return timer.wall, timer.cpu, None

    def raw(self, plan):
        """Plain blocking sockets, the same chunks, the same additions, and a blind that is kept."""
        residues, chunks = plan.agreed.residues, [plan.slots(chunk) for chunk in range(plan.count)]
        with Timer() as timer:
            vector = residues.lifted(self.values, BOUND) if self.name != RESEARCHER else None
            buffer = bytearray(CHUNK_BYTES)
            total = self._raw_master(residues, chunks, buffer) if vector is None else None
            for slots in chunks if vector is not None else []:
                view = memoryview(buffer)[: (slots.stop - slots.start) * residues.width]
                fill(self.inn, view)
                residues.add(planes(view, residues.limbs), vector[:, slots])
                self.out.sendall(view)
        return timer.wall, timer.cpu, None if total is None else digest_of(total)

    def _raw_master(self, residues, chunks, buffer):
        blind, total = residues.zeros(), residues.zeros()
        stream = Keystream(os.urandom)

        def send():
            for number, slots in enumerate(chunks):
                bytes_ = stream.chunk(number)((slots.stop - slots.start) * residues.width)
                blind[:, slots] = planes(bytes_, residues.limbs)
                self.out.sendall(bytes_)

        sender = threading.Thread(target=send)
        sender.start()
        for slots in chunks:
            view = memoryview(buffer)[: (slots.stop - slots.start) * residues.width]
            fill(self.inn, view)
            total[:, slots] = residues.subtract(planes(view, residues.limbs), blind[:, slots])
        sender.join()
        return total


def planes(view, limbs):
    return np.frombuffer(view, np.uint64).reshape(limbs, -1)


def fill(connection, view):
    while view:
        got = connection.recv_into(view, 0, socket.MSG_WAITALL)
        if not got:
            raise ConnectionResetError
        view = view[got:]


def digest_of(total):
    """Enough of a total to compare, cheap to send between processes."""
    return hashlib.blake2b(np.ascontiguousarray(total).view(np.uint64).tobytes(), digest_size=16).digest()


def expected_digest(plan):
    total = sum(values_of(name, plan.agreed.residues.slots) for name in plan.agreed.rings[0].members[1:])
    return digest_of(plan.agreed.residues.lifted(total, 10**18))


def serve(name, k, control):
    """The loop of one process."""
    member = Member(name, k)
    control.send(member.addresses())
    member.connect(control.recv())
    control.send(None)
    while (order := control.recv()) is not None:
        what, *arguments = order
        control.send(getattr(member, what)(*arguments))


class Ringful:
    """The processes of k parties and a researcher."""

    def __init__(self, k):
        context = multiprocessing.get_context("spawn")
        self.names = [RESEARCHER, *names_of(k)]
        self.processes, self.controls = [], []
        for name in self.names:
            mine, theirs = context.Pipe()
            process = context.Process(target=serve, args=(name, k, theirs), daemon=True)
            process.start()
            self.processes.append(process)
            self.controls.append(mine)
        addresses = [control.recv() for control in self.controls]
        self.where = {name: stream for name, (stream, _) in zip(self.names, addresses, strict=True)}
        for i, control in enumerate(self.controls):
            control.send(addresses[(i + 1) % len(addresses)][1])
        self._answers()

    def _answers(self):
        return [control.recv() for control in self.controls]

    def all(self, what, *arguments):
        for control in self.controls:
            control.send((what, *arguments))
        return self._answers()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for control in self.controls:
            control.send(None)
        for process in self.processes:
            process.join(10)


def summed(answers):
    """Wall time of the slowest, processor time of all, and the researcher's digest."""
    return max(a[0] for a in answers), sum(a[1] for a in answers), answers[0][2]


def against_plain_sockets(k, slots, limbs, rounds):
    with Ringful(k) as ring:
        ring.all("load", slots, limbs)
        samples = {}
        for turn in range(rounds + 1):
            for mode in ("plain sockets", "clear", "sealed"):
                plan = plan_of(k, slots, limbs)
                if turn == 0:
                    right = expected_digest(plan)
                if mode == "plain sockets":
                    answers = ring.all("raw", plan)
                else:
                    answers = ring.all("ours", plan, ring.where, mode == "sealed")
                wall, cpu, digest = summed(answers)
                assert digest == right, f"{mode}: not the sum: nothing is timed"
                if turn:
                    samples.setdefault(mode, []).append((wall, cpu))
    row = {"parties": k, "slots": slots, "bits": 64 * limbs}
    for mode, taken in samples.items():
        row[mode] = {
            "wall_ns": statistics.median(wall for wall, _ in taken) / slots * 1e9,
            "cpu_ns": statistics.median(cpu for _, cpu in taken) / slots * 1e9,
        }
    return row


if __name__ == "__main__":
    for limbs in (1, 2):
        row = against_plain_sockets(int(sys.argv[1]), int(sys.argv[2]), limbs, int(sys.argv[3]))
        print(row)
        for m in ("cpu_ns", "wall_ns"):
            p, c, s = (row[x][m] for x in ("plain sockets", "clear", "sealed"))
            print(f"  {m}: {p:.2f} {c:.2f} {s:.2f}; clear {c / p:.2f}x, sealed {s / c:.2f}x")
