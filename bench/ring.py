"""Secure sums of long vectors: python bench/ring.py [--quick] [--only TEXT].

Every party is a process of its own, linked over the loopback address; the sum is checked before anything is timed; what
is compared runs in turn in one run, and medians are told. Prints tables and writes bench/results/ring.json, or with
--only those parts of it.

a. processor and wall time for each slot against a ring of plain sockets that sends the same bytes and does the same
   additions; in the clear and sealed;
b. links of 25 MB/s and 10 ms: the time of the whole sum against the time that one such link takes for the vector;
c. peers: MPyC, TenSEAL, Flower's SecAgg+; those that are not installed are named and left out (PEERS_PYTHON names the
   interpreter that has them);
d. cost against the number of slots, its exponent, and the memory beyond the vector itself.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import queue
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from timing import machine
from voxring.net.streams import AesGcm, Streams
from voxring.ring.chunks import ChunkedSum, ChunkMaster, ChunkMember
from voxring.ring.keystream import Keystream
from voxring.ring.order import RESEARCHER, Ring
from voxring.ring.protocol import SecureSum
from voxring.ring.residues import Limbs
from voxring.session.chunked import in_the_clear, lead, pass_on

RESULTS = Path(__file__).parent / "results" / "ring.json"
PARTS = {"a": "plain", "b": "paced", "c": "peers", "d": "slots"}
BOUND = 2**40


def names_of(k):
    return [f"p{i}" for i in range(k)]


def plan_of(k, slots, limbs):
    """One ring: the researcher as master with value 0, and k parties."""
    ring = Ring((RESEARCHER, *names_of(k)))
    return ChunkedSum(SecureSum(bytes(32), os.urandom(16), "sum", (ring,), Limbs(limbs, slots), BOUND))


def values_of(name, slots):
    """Random numbers; of long vectors they come again and again, with a period that is no number of chunks."""
    period = min(slots, 1_000_003)
    return np.resize(np.random.default_rng(sum(name.encode())).integers(-BOUND, BOUND, period), slots)


class Timer:
    """Wall and processor time of this process, and the most memory that it took meanwhile beyond what it had."""

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
        self.had = resident("VmRSS")
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_):
        self.wall, self.cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        self.memory = resident("VmHWM") - self.had


def resident(what):
    """Bytes of this process, now or at most."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(what))


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
        self.values = np.zeros(0)
        self.streams = Streams("tcp://127.0.0.1:0") if name != RESEARCHER else None
        self.listener = socket.create_server(("127.0.0.1", 0))

    def addresses(self):
        return self.streams.addresses if self.streams else (), self.listener.getsockname()

    def connect(self, raw_successor):
        self.out = socket.create_connection(raw_successor)
        self.inn, _ = self.listener.accept()
        for one in (self.out, self.inn):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def load(self, slots):
        """Make the vector, outside of any timing."""
        self.values = values_of(self.name, slots) if self.name != RESEARCHER else None

    def ours(self, plan, where, sealed):
        seal_of = sealed_by(plan.agreed.session) if sealed else in_the_clear
        if self.name == RESEARCHER:
            with Timer() as timer:
                master = ChunkMaster(plan, os.urandom)
                lead(plan, master, where, seal_of=seal_of)
                total = master.total if plan.agreed.residues.limbs == 1 else master.residues
            return timer.wall, timer.cpu, timer.memory - master.residues.nbytes, digest_of(total)
        with Timer() as timer:
            member = ChunkMember(plan, self.name, self.values, os.urandom)
            pass_on(plan, member, self.name, self.streams, where, seal_of=seal_of)
        return timer.wall, timer.cpu, timer.memory, None

    def raw(self, plan):
        """Plain blocking sockets, the same chunks, the same additions, and a blind that is kept."""
        residues, chunks = plan.agreed.residues, [plan.slots(chunk) for chunk in range(plan.count)]
        with Timer() as timer:
            vector = residues.lifted(self.values, BOUND) if self.name != RESEARCHER else None
            buffer = bytearray(plan.frame_bytes(0))
            total = self._raw_master(residues, chunks, buffer) if vector is None else None
            for slots in chunks if vector is not None else []:
                view = memoryview(buffer)[: (slots.stop - slots.start) * residues.width]
                fill(self.inn, view)
                residues.add(planes(view, residues.limbs), vector[:, slots])
                self.out.sendall(view)
        return timer.wall, timer.cpu, timer.memory, None if total is None else digest_of(total)

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
    return hashlib.blake2b(np.ascontiguousarray(total).view(np.uint64), digest_size=16).digest()


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
    """The processes of k parties and a researcher, and the right sum once it is known."""

    right = None

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

    def __exit__(self, kind, *_):
        for control, process in zip(self.controls, self.processes, strict=True):
            if kind is None:
                control.send(None)
            else:
                process.terminate()
        for process in self.processes:
            process.join(10)


def once(ring, what, *arguments):
    """Have all do something, check the sum; return wall time of the slowest, processor time of all, most memory."""
    plan = arguments[0]
    answers = ring.all(what, *arguments)
    if ring.right is None:
        ring.right = expected_digest(plan)
    assert answers[0][3] == ring.right, f"{what}: not the sum: nothing is timed"
    return max(a[0] for a in answers), sum(a[1] for a in answers), max(a[2] for a in answers)


def load(ring, slots):
    ring.all("load", slots)
    ring.right = None


def medians(samples):
    return [statistics.median(column) for column in zip(*samples, strict=True)]


# a.


def against_plain_sockets(k, slots, limbs, rounds):
    modes = {"plain sockets": ("raw",), "clear": ("ours", False), "sealed": ("ours", True)}
    taken = {mode: [] for mode in modes}
    with Ringful(k) as ring:
        load(ring, slots)
        for turn in range(rounds + 1):
            for mode, (what, *sealed) in modes.items():
                arguments = [ring.where, *sealed] if sealed else []
                sample = once(ring, what, plan_of(k, slots, limbs), *arguments)
                if turn:  # the first warms up
                    taken[mode].append(sample)
    row = {"parties": k, "slots": slots, "bits": 64 * limbs}
    for mode, samples in taken.items():
        wall, cpu, _ = medians(samples)
        row[mode] = {"wall_ns": wall / slots * 1e9, "cpu_ns": cpu / slots * 1e9}
    return row


def show_plain(row):
    print(f"\na. {row['parties']} parties, {row['slots']:,} slots of {row['bits']} bits; ns a slot")
    for what in ("cpu_ns", "wall_ns"):
        plain, clear, sealed = (row[mode][what] for mode in ("plain sockets", "clear", "sealed"))
        print(
            f"   {what[:-3]:<5} plain sockets {plain:6.1f}   clear {clear:6.1f} = {clear / plain:.2f}×   "
            f"sealed {sealed:6.1f} = {sealed / clear:.2f}× clear",
            flush=True,
        )


# b.

RATE, LATENCY = 25e6, 0.010


class Paced:
    """A process between the members: each connection through it gets RATE bytes a second, LATENCY later."""

    def __init__(self, where):
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        self._process = context.Process(target=pace, args=(where, theirs), daemon=True)
        self._process.start()
        self.where = mine.recv()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.join()


def pace(where, control):
    doors = [(name, address, socket.create_server(("127.0.0.1", 0))) for name in where for address in where[name]]
    control.send(
        {
            name: [f"tcp://127.0.0.1:{door.getsockname()[1]}" for whose, _, door in doors if whose == name]
            for name in where
        }
    )
    for _, address, door in doors:
        threading.Thread(target=pace_all, args=(door, address), daemon=True).start()
    threading.Event().wait()


def pace_all(door, address):
    while True:
        came, _ = door.accept()
        try:
            on = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
        except OSError:  # a door is closed for a moment between two sums
            came.close()
            continue
        for source, to in ((came, on), (on, came)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            later = queue.SimpleQueue()
            threading.Thread(target=take_at_rate, args=(source, later), daemon=True).start()
            threading.Thread(target=give_late, args=(later, to), daemon=True).start()


def take_at_rate(source, later):
    free = 0.0
    while piece := source.recv(1 << 16):
        free = max(free, time.perf_counter()) + len(piece) / RATE
        sleep_until(free)
        later.put((free + LATENCY, piece))
    later.put((free, b""))


def give_late(later, to):
    while True:
        when, piece = later.get()
        if not piece:
            with contextlib.suppress(OSError):  # it has gone
                to.shutdown(socket.SHUT_WR)
            return
        sleep_until(when)
        to.sendall(piece)


def sleep_until(when):
    pause = when - time.perf_counter()
    if pause > 0:
        time.sleep(pause)


def one_link(size):
    """Seconds for so many bytes over one paced link."""
    door = socket.create_server(("127.0.0.1", 0))
    with Paced({"there": [f"tcp://127.0.0.1:{door.getsockname()[1]}"]}) as paced:
        out = socket.create_connection(("127.0.0.1", int(paced.where["there"][0].rpartition(":")[2])))
        came, _ = door.accept()
        start = time.perf_counter()
        sender = threading.Thread(target=out.sendall, args=(bytes(size),))
        sender.start()
        fill(came, memoryview(bytearray(size)))
        taken = time.perf_counter() - start
        sender.join()
        for one in (out, came, door):
            one.close()
        return taken


def over_paced_links(k, slots, rounds):
    sums, links = [], []
    with Ringful(k) as ring:
        load(ring, slots)
        with Paced({name: where for name, where in ring.where.items() if where}) as paced:
            for _ in range(rounds):
                sums.append(once(ring, "ours", plan_of(k, slots, 1), paced.where, True)[0])
                links.append(one_link(8 * slots))
    return {
        "parties": k,
        "slots": slots,
        "window_chunks": plan_of(k, slots, 1).window,
        "seconds": statistics.median(sums),
        "one_link_seconds": statistics.median(links),
    }


def show_paced(row):
    print(
        f"b. {row['parties']} parties, {row['slots']:,} slots, sealed: {row['seconds']:.2f} s; one link "
        f"{row['one_link_seconds']:.2f} s: {row['seconds'] / row['one_link_seconds']:.2f}×",
        flush=True,
    )


# c.


def peers(k, slots, rounds, python):
    row = {"parties": k, "slots": slots, "cpu": {}, "missing": {}}
    samples = []
    with Ringful(k) as ring:
        load(ring, slots)
        for _ in range(rounds + 1):
            samples.append(once(ring, "ours", plan_of(k, slots, 1), ring.where, True))
    row["cpu"]["voxring, sealed"] = medians(samples[1:])[1]
    script = Path(__file__).with_name("ring_peers.py")
    for peer in ("mpyc", "tenseal", "flower"):
        run = subprocess.run([python, script, peer, str(k), str(slots)], check=False, capture_output=True, text=True)
        try:
            told = json.loads(run.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            row["missing"][peer] = run.stderr.strip().splitlines()[-1:]
            continue
        assert told["right"], f"{peer}: not the sum: its time is not told"
        row["cpu"][peer] = told["cpu"]
    return row


def show_peers(row):
    print(f"\nc. {row['parties']} parties, {row['slots']:,} slots; processor seconds of all")
    ours = row["cpu"]["voxring, sealed"]
    for name, cpu in row["cpu"].items():
        print(f"   {name:<16} {cpu:9.4f}   {cpu / ours:7.1f}×", flush=True)
    for name, why in row["missing"].items():
        print(f"   {name}: not installed ({'; '.join(why)})")


# d.


def against_slots(k, sizes, rounds):
    rows = []
    with Ringful(k) as ring:
        for slots in sizes:
            load(ring, slots)
            once(ring, "ours", plan_of(k, slots, 1), ring.where, False)
            taken = [once(ring, "ours", plan_of(k, slots, 1), ring.where, False) for _ in range(rounds)]
            wall, cpu, memory = medians(taken)
            rows.append(
                {
                    "parties": k,
                    "slots": slots,
                    "wall": wall,
                    "cpu": cpu,
                    "chunks_beyond_the_vector": memory / plan_of(k, slots, 1).frame_bytes(0),
                }
            )
            show_slots(rows[-1])
    return rows


def show_slots(row):
    print(
        f"d. {row['slots']:>11,} slots: {row['cpu'] * 1e3:9.2f} ms cpu, "
        f"{row['cpu'] / row['slots'] * 1e9:9.1f} ns a slot, {row['wall'] * 1e3:9.2f} ms wall; "
        f"at most {row['chunks_beyond_the_vector']:.1f} chunks beyond the vector",
        flush=True,
    )


def exponent(rows):
    """Slope of the logarithms, from where chunks outweigh the start."""
    long = [row for row in rows if row["slots"] >= 10**6]
    return float(np.polyfit(*(np.log([row[what] for row in long]) for what in ("slots", "cpu")), 1)[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short vectors, few rounds; writes no file")
    parser.add_argument("--only", default="abcd", help="which parts")
    options = parser.parse_args()
    quick, parts = options.quick, options.only
    results = {"plain": [], "paced": [], "peers": [], "slots": []}
    if RESULTS.exists():
        results |= json.loads(RESULTS.read_text(encoding="utf-8"))
    results |= {"machine": machine()} | {PARTS[part]: [] for part in parts}
    for package in ("cryptography", "pynng"):
        results["machine"]["versions"][package] = importlib.metadata.version(package)
    if "a" in parts:
        for slots, limbs in ((10**6, 1), (10**6, 2)) if quick else ((10**6, 1), (8 * 10**6, 1), (4 * 10**6, 2)):
            results["plain"].append(against_plain_sockets(3, slots, limbs, 3 if quick else 9))
            show_plain(results["plain"][-1])
    if "b" in parts:
        print()
        for k in (3,) if quick else (3, 5, 9):
            results["paced"].append(over_paced_links(k, 10**6 if quick else 4 * 10**6, 1 if quick else 3))
            show_paced(results["paced"][-1])
    if "c" in parts:
        python = os.environ.get("PEERS_PYTHON", sys.executable)
        for k, slots in ((3, 10**5),) if quick else ((3, 10**5), (5, 10**5), (3, 10**6), (5, 10**6)):
            results["peers"].append(peers(k, slots, 7, python))
            show_peers(results["peers"][-1])
    if "d" in parts:
        print()
        sizes = (
            (10**3, 10**5, 10**6, 4 * 10**6)
            if quick
            else (10**3, 10**4, 10**5, 10**6, 4 * 10**6, 16 * 10**6, 64 * 10**6)
        )
        results["slots"] = against_slots(3, sizes, 3)
        results["exponent"] = exponent(results["slots"])
        print(f"   exponent from 1,000,000 slots on: {results['exponent']:.3f}")
    if not quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
