"""Real parties over sockets that misbehave: the exact answer for all, or a named error for all, in time."""

import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import get_context

import pytest

from voxring.errors import PeerError, ProtocolError, VoxringError
from voxring.net import PrivateKey
from voxring.session import Account, Heard, Ledger, run_party, run_researcher
from voxring.session.coins import CoinFile
from voxring.study import Study
from voxring.totals import ClassTotals, LocalTotals, Statistics, pooled
from wire import KINDS, Proxy

NAMES = "abc"
TIMEOUT, DEADLINE = 3.0, 25.0
ANYWHERE = "tcp://127.0.0.1:0"
STUDY = Study.of(
    name="faults",
    classes={"lesion": 1},
    window={"size": 3},
    bounds={"voxels_per_party": 10**6, "intensity": 10**4},
    party=[{"name": name} for name in NAMES],
)
TOTALS = {
    name: LocalTotals({"lesion": ClassTotals(10 + i, 1000 * i, 50 * i, 10**6 + i, 1)}) for i, name in enumerate(NAMES)
}
TRUTH = pooled(sum(TOTALS.values(), LocalTotals()), STUDY)
KEYS = {name: PrivateKey(name[0].encode() * 32) for name in (*NAMES, "researcher")}  # the same in every process
PUBLIC = {name: key.public for name, key in KEYS.items()}


class Run:
    """One study with a proxy before each party. A fault strikes one of them."""

    def __init__(self, seed: int, kind: str, *, sealed: bool) -> None:
        draw = random.Random(seed)  # noqa: S311
        self.sealed, self.kind = sealed, kind
        self.struck = draw.choice(NAMES)
        self.fault = {"kind": kind, "at": draw.randrange(3000 if sealed else 1500), "answers": draw.random() < 0.5}
        self.seed = seed
        self.where: dict[str, str] = {}
        self.proxies: list[Proxy] = []
        self.all_here = threading.Barrier(len(NAMES))

    def listening(self, name: str) -> Callable[[str], dict[str, str]]:
        def at(address: str) -> dict[str, str]:
            fault = self.fault if name == self.struck else {}
            proxy = Proxy(address, seed=self.seed, **fault)
            self.proxies.append(proxy)
            self.where[name] = proxy.address
            self.all_here.wait(20)
            return dict(self.where)

        return at

    def options(self, name: str) -> dict:
        return {"key": KEYS[name], "keys": PUBLIC} if self.sealed else {"insecure": True}

    def go(self) -> tuple[str, float]:
        """Return how it ended and how long that took after all were up."""
        with ThreadPoolExecutor(len(NAMES)) as pool:
            parties = {
                name: pool.submit(
                    run_party,
                    STUDY,
                    name,
                    lambda name=name: TOTALS[name],
                    state=None,
                    address=ANYWHERE,
                    listening=self.listening(name),
                    timeout=TIMEOUT,
                    **self.options(name),
                )
                for name in NAMES
            }
            while len(self.where) < len(NAMES):
                time.sleep(0.01)
            start = time.monotonic()
            try:
                answer, _ = run_researcher(
                    STUDY, peers=self.where, timeout=TIMEOUT, retries=1, **self.options("researcher")
                )
            except (PeerError, ProtocolError) as error:
                ended, answer = str(error), None
            else:
                ended = "done"
            heard = {name: outcome(party) for name, party in parties.items()}
            took = time.monotonic() - start
        for proxy in self.proxies:
            proxy.close()
        self.check(ended, answer, heard)
        self.struck_now = sum(proxy.struck.is_set() for proxy in self.proxies)
        return ended, took

    def check(self, ended: str, answer: dict | None, heard: dict[str, Heard | VoxringError]) -> None:
        lesion = TRUTH["lesion"]
        assert isinstance(lesion, Statistics)
        for one in heard.values():
            if isinstance(one, Heard):
                assert (one.means, one.counts) == ({"lesion": lesion.mean}, {"lesion": lesion.voxels})
        if answer is None:
            assert any(word in ended for word in ("while", "in the secure sum"))  # the phase
            assert re.search(r"\b[abc]\b", ended.partition(": ")[2]), ended  # the party
        else:
            assert answer == TRUTH


def outcome(party: Future) -> Heard | VoxringError:
    error = party.exception(timeout=DEADLINE)
    if error is None:
        return party.result()
    assert isinstance(error, (PeerError, ProtocolError)), error
    return error


@pytest.mark.parametrize(
    "count", [18, pytest.param(int(os.environ.get("VOXRING_SOAK", "324")), marks=pytest.mark.soak)]
)
@pytest.mark.timeout(3600)
def test_whatever_the_network_does_all_end_right_or_with_an_error_in_time(count: int) -> None:
    seen: Counter[tuple[str, bool]] = Counter()
    struck: Counter[str] = Counter()
    slowest = 0.0

    def one(number: int) -> tuple[str, bool, float]:
        kind = KINDS[number % len(KINDS)]
        run = Run(number, kind, sealed=number // len(KINDS) % 2 == 0)
        ended, took = run.go()
        struck[kind] += run.struck_now
        return kind, ended == "done", took

    with ThreadPoolExecutor(4) as pool:
        for kind, done, took in pool.map(one, range(count)):
            seen[kind, done] += 1
            slowest = max(slowest, took)
    assert slowest < DEADLINE
    print(f"\n{count} runs, slowest {slowest:.1f} s; 0 wrong, 0 hung")
    for kind in KINDS:
        print(
            f"  {kind:<11} struck {struck[kind]:4}   right {seen[kind, True]:4}   "
            f"ended with an error {seen[kind, False]:4}"
        )
    assert sum(struck.values()) > count / 2


def test_without_a_fault_the_proxies_change_nothing() -> None:
    for sealed in (True, False):
        ended, _ = Run(1, "", sealed=sealed).go()
        assert ended == "done"


def party_process(pipe, name: str, state: str, *, dies: bool) -> None:
    """One party in a process of its own, which may kill itself when it computes."""

    def listening(address: str) -> dict[str, str]:
        pipe.send(address)
        return pipe.recv()

    account = Account(Ledger(state, name), STUDY)
    account.approve(STUDY.digest, how="test")

    def totals() -> LocalTotals:
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return account.add_up([TOTALS[name]])

    options = {"key": KEYS[name], "keys": PUBLIC, "ledger": account}
    pipe.send(run_party(STUDY, name, totals, state=state, address=ANYWHERE, listening=listening, timeout=20, **options))


def spawn(*args: object, **options: object):
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=party_process, args=(theirs, *args), kwargs=options, daemon=True)
    process.start()
    theirs.close()
    return process, ours


def test_a_party_that_dies_while_it_computes_and_is_started_again_does_not_cost_the_study(tmp_path) -> None:
    """Its connections, its session and its share are gone; its coin is on its disk."""
    for name in NAMES:  # as a run before this one left it
        CoinFile(tmp_path / name, STUDY, name).use(bytes(32))
    started = {name: spawn(name, str(tmp_path / name), dies=name == "b") for name in NAMES}
    proxies = {name: Proxy(pipe.recv()) for name, (_, pipe) in started.items()}
    where = {name: proxy.address for name, proxy in proxies.items()}
    for _, pipe in started.values():
        pipe.send(where)

    def start_again() -> None:
        dead, _ = started["b"]
        dead.join(30)
        assert dead.exitcode == -signal.SIGKILL
        started["b"] = spawn("b", str(tmp_path / "b"), dies=False)
        proxies["b"].turn_to(started["b"][1].recv())
        started["b"][1].send(where)

    said: list[str] = []
    options = {"key": KEYS["researcher"], "keys": PUBLIC}
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(start_again)
        answer, _ = run_researcher(STUDY, peers=where, timeout=20, retries=1, notify=said.append, **options)
        again.result()
    assert answer == TRUTH
    assert any(what.startswith("starting over, nothing was released yet: ") and "b" in what for what in said)
    for process, pipe in started.values():
        assert isinstance(pipe.recv(), Heard)
        process.join(20)
        assert process.exitcode == 0
    for proxy in proxies.values():
        proxy.close()
    for name in NAMES:
        entries = Ledger(tmp_path / name, name).verified()
        assert [entry.kind for entry in entries].count("session") == 2
        ends = [json.loads(entry.content) for entry in entries if entry.kind == "end"]
        assert (ends[-1]["outcome"], ends[-1]["given"]) == ("done", ["voxels", "sum", "sdsum"])
