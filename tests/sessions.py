"""Algorithm 1 in session, in memory: what the tests of sessions share."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product

import msgspec

from voxring.errors import PeerError, RemoteProtocolError
from voxring.landmarks import landmark_totals
from voxring.net import PrivateKey
from voxring.ring.message import Message, decode, encode
from voxring.session import bodies
from voxring.session.party import Party
from voxring.session.plan import Plan
from voxring.session.researcher import Researcher
from voxring.study import AtWeights, Study
from voxring.totals import ClassTotals, LocalTotals, pooled

ANYWHERE = "tcp://127.0.0.1:0"
CLASSES = {"lesion": 1, "liver": 2, "rare": 3}
UNIT = 2**16


def a_study(names: str = "abc", *, name: str = "t", classes: dict[str, int] | None = None, **privacy: int) -> Study:
    return Study.of(
        name=name,
        classes=classes or CLASSES,
        window={"size": 3},
        standardise={"method": "rescale", "range": (-1000.0, 3000.0)},
        privacy={"min_voxels": 10, **privacy},
        bounds={"voxels_per_party": 10**6},
        party=[{"name": name} for name in names],
    )


def some_totals(seed: int) -> LocalTotals:
    """Totals such as images could have; class 'rare' is below min_voxels for any three parties."""
    draw = random.Random(seed)  # noqa: S311

    def of_class(count: int) -> ClassTotals:
        x = [draw.randrange(-UNIT, UNIT) for _ in range(count)]
        local_means = sum(draw.randrange(-UNIT * 27, UNIT * 27) for _ in range(count))
        return ClassTotals(count, local_means, sum(x), sum(value * value for value in x), min(count, 3))

    return LocalTotals(
        {"lesion": of_class(draw.randrange(20, 50)), "liver": of_class(draw.randrange(20, 50)), "rare": of_class(1)}
    )


COIN = bytes(31) + b"\7"
BOUND = Plan(a_study(), COIN).binding
TOTALS = {name: some_totals(seed) for seed, name in enumerate("abcdefgh")}
TRUTH = pooled(TOTALS["a"] + TOTALS["b"] + TOTALS["c"], a_study())


DOORS = tuple(range(100, 110))


class Line:
    """One asker's line to one peer, like Req0: a question is repeated until answered, the last answer counts."""

    def __init__(self) -> None:
        self.question: bytes | None = None
        self.number = 0


class Network:
    """Researcher and parties in memory. What is under way is (asker, peer, number of question, frame, is answer)."""

    def __init__(
        self,
        study: Study,
        totals: dict[str, LocalTotals] = TOTALS,
        coins: dict[str, bytes] | None = None,
        *,
        used: set[str] | None = None,
        sealed: bool = False,
    ) -> None:
        """``coins`` are what the parties keep of an earlier run, and what they keep of this; ``used`` by whom."""
        self.draw = draw = random.Random(7).randbytes  # noqa: S311
        self.study = study
        self.sealed = sealed
        self.researcher = Researcher(study, draw, sealed=sealed)
        self.coins = {} if coins is None else coins
        self.used = set(self.coins) if used is None else used
        self.parties = {name: self._party(name) for name in study.parties}
        self.totals = totals
        self.landmarks: dict[str, LocalTotals] = {}
        self.skipped: dict[str, int] = {}
        self.step: Callable[[str, AtWeights], LocalTotals] | None = None
        self.lines = {(asker, peer): Line() for asker in ("researcher", *study.parties) for peer in study.parties}
        self.under_way: list[tuple[str, str, int, bytes, bool]] = []
        self.seen: list[bytes] = []
        self.errors: list[Exception] = []
        self.keys: dict[tuple, bytes] = {}

    def _party(self, name: str) -> Party:
        party = Party(
            self.study,
            name,
            self.draw,
            coin=self.coins.get(name),
            used=name in self.used,
            keep=partial(self.keep, name),
            use=partial(self.use, name),
            sealed=self.sealed,
        )
        party.doors = DOORS
        return party

    def keep(self, name: str, coin: bytes) -> None:
        assert name not in self.used
        self.coins[name] = coin

    def use(self, name: str, coin: bytes) -> None:
        assert self.coins[name] == coin
        self.used.add(name)

    def send(self, item: tuple[str, str, int, bytes, bool]) -> None:
        self.under_way.append(item)
        self.seen.append(item[3])

    def ask(self) -> None:
        """Whoever has something to ask and no question open asks it; parties that wait for their totals get them."""
        for name, party in self.parties.items():
            if party.state == "surveying":
                party.supply_landmarks(self.landmarks[name])
            if party.state == "computing":
                party.supply(self.totals[name], self.skipped.get(name, 0))
            if party.state == "stepping":
                party.supply_step(self.step(name, party.at))
            question = self.researcher.request(name) if not self.researcher.done else None
            self._open("researcher", name, question)
            if party.outbox:
                self._open(name, *party.outbox[0])
        self.carry()

    def carry(self) -> None:
        """Carry all chunks of a long vector, once every stream of every member has its key and its door."""
        mine, streamed = self.researcher.streamed, {name: party.streamed for name, party in self.parties.items()}
        if mine is None or mine.part.done or not all(one and one.ready for one in (mine, *streamed.values())):
            return
        if len({one.plan.identity for one in (mine, *streamed.values())}) > 1:
            return  # some have started over: their streams do not meet
        if any(party.state in ("lost", "failed") for party in self.parties.values()):
            return  # and have ended their streams
        for ring, chunk in product(range(len(mine.agreed.rings)), range(mine.plan.count)):
            frame = memoryview(bytearray(mine.plan.frame_bytes(chunk)))
            mine.part.fill(frame, ring, chunk)
            for name in mine.agreed.rings[ring].members[1:]:
                streamed[name].part.receive(frame)
            mine.part.receive(frame)
        for one in (mine, *streamed.values()):
            for stream, key in one.keys.items():
                assert self.keys.setdefault((one.agreed.session, one.agreed.name, *stream), key) == key
        for party in self.parties.values():
            party.carried()
        self.researcher.carried([int(number) for number in mine.part.total])

    def _open(self, asker: str, peer: str, question: bytes | None) -> None:
        line = self.lines[asker, peer]
        if line.question is None and question is not None:
            line.question, line.number = question, line.number + 1
            self.send((asker, peer, line.number, question, False))

    def restart(self, name: str) -> None:
        """A party's process dies and another takes its place, which knows the coin that was kept."""
        self.parties[name] = self._party(name)
        for peer in self.study.parties:
            self.lines[name, peer].question = None

    def resend(self) -> None:
        for (asker, peer), line in self.lines.items():
            if line.question is not None:
                self.send((asker, peer, line.number, line.question, False))

    def deliver(self, index: int = 0) -> None:
        asker, peer, number, frame, is_answer = self.under_way.pop(index)
        if not is_answer:
            answer = self.parties[peer].answer(frame)
            assert answer is not None
            self.send((asker, peer, number, answer.frame, True))
            return
        line = self.lines[asker, peer]
        if line.question is None or number != line.number:
            return
        line.question = None
        try:
            if asker == "researcher":
                self.researcher.take(peer, frame)
            else:
                self.parties[asker].delivered(frame)
        except (PeerError, RemoteProtocolError) as error:
            self.errors.append(error)
            if asker != "researcher":
                self.parties[asker].lose("it lost the next in a ring")

    def start_over(self) -> None:
        """What the researcher does after a session that failed; what is under way may still come."""
        failed = *self.researcher.failed, self.researcher.session
        self.researcher = Researcher(self.study, self.draw, failed, sealed=self.sealed)
        self.errors.clear()
        for line in self.lines.values():
            line.question = None

    def finish(self) -> None:
        """Deliver everything in order, repeating what was lost, until the researcher is done or an error ends it."""
        for _ in range(200):
            self.ask()
            if not self.under_way:
                self.resend()
            while self.under_way and not self.errors:
                self.deliver()
            if self.researcher.done or self.errors:
                return


def old_frames() -> list[bytes]:
    """Frames of an earlier session of the same study, and of another study, with other numbers."""
    frames: list[bytes] = []
    for study in (a_study(), a_study(name="another")):
        network = Network(study, {name: some_totals(seed) for seed, name in enumerate("abc", 50)})
        network.researcher.session = bytes(15) + b"\1"
        network.finish()
        assert network.researcher.done
        frames += network.seen
    return frames


OLD = old_frames()


def until(network: Network, name: str, state: str) -> Party:
    """Run a network until a party is in a state."""
    for _ in range(1000):
        if network.parties[name].state == state:
            return network.parties[name]
        network.ask()
        network.deliver()
    raise AssertionError(f"{name} never was {state}")


def ask(network: Network, kind: str, party: str, body: bytes = b"", **fields: object) -> str:
    """Ask a party something as the researcher; return why it was refused."""
    message = Message(
        kind=kind,
        digest=network.researcher.plan.digest,
        session=network.researcher.session,
        sender="researcher",
        receiver=party,
        body=body,
    )
    answer = network.parties[party].answer(encode(msgspec.structs.replace(message, **fields)))
    assert answer is not None
    reply = decode(answer.frame, limit=10**6)
    if reply.kind != "refused":
        return ""
    assert answer.sender is None
    return bodies.read_reason(reply.body)


def until_computing(network: Network) -> Party:
    party = network.parties["a"]
    answer = party.answer(network.researcher.request("a"))
    assert answer is not None
    assert party.state == "computing"
    return party


PRIVATE = {name: PrivateKey(bytes([i]) * 32) for i, name in enumerate(("a", "b", "c", "researcher"), 1)}
PUBLIC = {name: key.public for name, key in PRIVATE.items()}


def a_sealed_study(**changed: str) -> Study:
    keys = PUBLIC | changed
    tables = msgspec.to_builtins(a_study()) | {
        "party": [{"name": name, "key": keys[name]} for name in "abc"],
        "researcher": {"key": keys["researcher"]},
    }
    return Study.of(**tables)


NYUL = {"method": "nyul", "percentiles": (1.0, 25.0, 50.0, 99.0), "landmarks": "agree"}


def some_landmarks(seed: int) -> LocalTotals:
    """Landmarks such as a party's images could have, of one or more patients."""
    draw = random.Random(seed)  # noqa: S311
    images = [landmark_totals(9, seed, sorted(draw.sample(range(1, UNIT), 2))) for _ in range(draw.randrange(1, 4))]
    return sum(images, LocalTotals())


def agreeing_network(names: str = "abc", *, coins: dict[str, bytes] | None = None, **privacy: int) -> Network:
    """A network whose parties agree on landmarks first."""
    study = Study.of(**msgspec.to_builtins(a_study(names, **privacy)) | {"standardise": NYUL})
    network = Network(study, coins=coins)
    network.landmarks = {name: some_landmarks(seed) for seed, name in enumerate(names, 3)}
    return network


def fitting_network() -> Network:
    """A network that takes one step of a logistic regression, of one feature, which is the intensity."""
    more = {"feature": [{"kind": "intensity"}], "statistics": {"gram": True}, "logistic": {"steps": 1}}
    study = Study.of(**msgspec.to_builtins(a_study(classes={"lesion": 1, "liver": 2})) | more)

    def having(name: str, numbers: Callable[[str, ClassTotals], tuple[int, ...]]) -> LocalTotals:
        of = {one: TOTALS[name][one] for one in study.classes}
        return LocalTotals({one: replace(mine, statistics=numbers(one, mine)) for one, mine in of.items()})

    def step(name: str, at: AtWeights) -> LocalTotals:
        """At weights of 0 both classes have p = 1/2."""
        assert at.rows == ((0, 0),)

        def numbers(one: str, mine: ClassTotals) -> tuple[int, ...]:
            half = 2**39 if one == "lesion" else -(2**39)
            sums = mine.voxels, mine.total
            return (*(half * value for value in sums), *(2**38 * value for value in (*sums, mine.squares)))

        return having(name, numbers)

    network = Network(study, {name: having(name, lambda one, mine: (mine.total, mine.squares)) for name in "abc"})
    network.step = step
    return network
