"""The coin: drawn once by all, kept, and chosen by nobody."""

import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec
import pytest

from sessions import (
    ANYWHERE,
    COIN,
    TRUTH,
    Network,
    a_study,
    ask,
    until,
)
from voxring.errors import PeerError, RemoteProtocolError, StudyError
from voxring.ring.coin import coin_of, commitment
from voxring.ring.message import decode, encode
from voxring.session import bodies, run_party, state_folder
from voxring.session import plan as plans
from voxring.session.coins import Coin, CoinFile
from voxring.session.researcher import Researcher
from voxring.study import Study
from voxring.totals import LocalTotals


def test_the_coin_is_drawn_once_and_every_later_run_has_the_same_rings() -> None:
    coins: dict[str, bytes] = {}
    first = Network(a_study("abcde"), coins=coins)
    first.finish()
    assert len(set(coins.values())) == 1
    assert len(coins) == 5
    kept = dict(coins)
    second = Network(a_study("abcde"), coins=coins)
    second.researcher = Researcher(a_study("abcde"), random.Random(8).randbytes)  # noqa: S311
    second.finish()
    assert second.researcher.done
    assert coins == kept
    assert second.researcher.plan.rings == first.researcher.plan.rings
    kinds = {decode(frame, limit=10**6).kind for frame in second.seen}
    assert not kinds & {"commitments", "opening", "openings"}
    assert "the parties keep the coin of an earlier run" in second.researcher.news


@pytest.mark.parametrize(
    ("coins", "who"),
    [
        ({"a": COIN, "b": COIN}, "a, b keep 000000000000; c keeps none"),
        ({"a": COIN, "b": COIN, "c": b"\1" * 32}, "c keeps 010101010101; a, b keep 000000000000"),
        ({"c": COIN}, "c keeps 000000000000; a, b keep none"),
    ],
)
def test_parties_that_have_used_different_coins_are_named_with_the_remedy(coins: dict[str, bytes], who: str) -> None:
    network = Network(a_study(), coins=dict(coins))
    network.finish()
    (error,) = network.errors
    assert isinstance(error, PeerError)
    assert who in str(error)
    assert "copy it to those from a party that has it" in str(error)
    assert network.coins == coins
    assert not any(decode(frame, limit=10**6).kind == "share" for frame in network.seen)


def senders_rings(frames: list[bytes]) -> dict[str, set[bytes]]:
    """Under which rings each member has sent what depends on its numbers."""
    rings: dict[str, set[bytes]] = {}
    for message in (decode(frame, limit=10**6) for frame in frames):
        if message.kind in ("share", "stream") and message.sender != "researcher":
            rings.setdefault(message.sender, set()).add(message.digest)
        if message.kind == "status" and (share := bodies.read_status(message.body).share):
            rings.setdefault(message.sender, set()).add(decode(share, limit=10**6).digest)
    return rings


@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize("dies", ["a", "c", "all"])
def test_whoever_dies_at_whichever_step_no_coin_needs_a_hand_and_no_rings_change(
    monkeypatch: pytest.MonkeyPatch, dies: str, in_chunks: bool
) -> None:
    if in_chunks:
        monkeypatch.setattr(plans, "IN_CHUNKS", 0)
    drawn_anew = steps = 0
    finished = False
    while not finished:
        network = Network(a_study())
        for _ in range(steps):
            network.ask()
            if network.under_way:
                network.deliver()
        finished, steps = network.researcher.done, steps + (2 if in_chunks else 1)
        drawn = dict(network.coins)
        if dies != "all":
            network.restart(dies)
            if network.researcher.may_start_over:
                network.start_over()
                network.finish()
                assert network.researcher.answer == TRUTH
        second = Network(network.study, coins=network.coins, used=network.used)
        second.researcher = Researcher(network.study, random.Random(9).randbytes)  # noqa: S311
        second.finish()
        assert second.researcher.answer == TRUTH
        assert len(set(network.coins.values())) == 1
        assert network.used == {*"abc"}
        assert all(len(rings) == 1 for rings in senders_rings(network.seen + second.seen).values())
        drawn_anew += bool(drawn) and drawn != network.coins
    assert drawn_anew  # some had kept one, and others had not


@pytest.mark.parametrize(
    ("coins", "used", "outcome"),
    [
        ("111", "", "kept by abc"),
        ("111", "b", "kept by ac"),
        ("111", "abc", "kept by "),
        ("11-", "", "drawn"),
        ("121", "", "drawn"),
        ("--2", "", "drawn"),
        ("112", "a", "refused"),
        ("11-", "ab", "refused"),
        ("1-1", "c", "refused"),
    ],
)
def test_a_coin_is_kept_if_all_have_it_drawn_anew_if_nobody_used_one_and_refused_otherwise(
    coins: str, used: str, outcome: str
) -> None:
    kept = {name: bytes([int(coin)]) * 32 for name, coin in zip("abc", coins, strict=True) if coin != "-"}
    network = Network(a_study(), coins=dict(kept), used=set(used))
    network.finish()
    asked = [decode(frame, limit=10**6) for frame in network.seen]
    if outcome == "refused":
        assert "or none to have used one" in str(network.errors[0])
        assert network.coins == kept
        assert not network.researcher.may_start_over
        return
    assert network.researcher.answer == TRUTH
    assert network.used == {*"abc"}
    told = "".join(sorted({message.receiver for message in asked if message.kind == "kept"}))
    assert outcome == (f"kept by {told}" if network.coins == kept else "drawn")
    said = [what for party in network.parties.values() for what in party.news]
    assert any("anew, since not all parties kept" in what for what in said) == (outcome == "drawn")


def test_no_share_leaves_before_the_coin_is_noted_as_used() -> None:
    def full(coin: bytes) -> None:
        raise StudyError("the disk is full")

    for name in "abc":
        network = Network(a_study())
        network.parties[name]._use = full
        network.finish()
        assert f"{name} refused" in str(network.errors[0])
        assert isinstance(network.parties[name].error, StudyError)
        assert name not in senders_rings(network.seen)


def test_in_the_session_that_follows_one_that_failed_a_coin_that_was_used_is_not_given_up() -> None:
    network = Network(a_study("abcd"))
    party = until(network, "c", "counted")
    assert network.researcher.may_start_over
    network.start_over()
    del network.coins["b"]
    network.used.discard("b")
    network.restart("b")  # whose disk is lost
    network.finish()
    assert "b keeps none: copy it" in str(network.errors[0])
    welcomes = [message for message in map(partial(decode, limit=10**6), network.seen) if message.kind == "welcome"]
    last = {message.sender: bodies.read_welcome(message.body) for message in welcomes}
    assert not last["c"].commitment
    assert last["c"].coin == network.coins["c"]
    assert party.state != "opened"


def test_what_the_researcher_says_of_a_coin_is_held_against_what_is_kept() -> None:
    network = Network(a_study(), coins=dict.fromkeys("abc", COIN), used=set())
    party = until(network, "a", "offered")
    assert "expected the coin that a keeps, got another" in ask(network, "kept", "a", bytes(32))
    assert party.state == "offered"
    used = Network(a_study(), coins=dict.fromkeys("abc", COIN))
    until(used, "a", "computing")
    parts = bodies.write_parts(dict.fromkeys("abc", bytes(32)))
    assert "came early or late" in ask(used, "commitments", "a", parts)
    assert "came early or late" in ask(used, "kept", "a", COIN)
    network.finish()
    assert network.researcher.answer == TRUTH


class PowerFailureError(Exception):
    """Ends a process at once."""


@pytest.mark.parametrize("step", ["keep", "use"])
@pytest.mark.parametrize("call", ["fsync", "link", "replace", "unlink"])
@pytest.mark.parametrize("before", [True, False])
def test_files_hold_the_coin_before_or_after_a_step_whenever_it_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: str, call: str, before: bool
) -> None:
    def failing(*args: object, **options: object) -> object:
        nonlocal left
        left -= 1
        if left == 0 and before:
            raise PowerFailureError
        done = real(*args, **options)
        if left == 0:
            raise PowerFailureError
        return done

    for number in range(1, 5):
        file, left, real = CoinFile(tmp_path / str(number), a_study(), "a"), number, getattr(os, call)
        file.keep(b"\1" * 32)
        was = file.read()
        coin = b"\2" * 32 if step == "keep" else b"\1" * 32
        with monkeypatch.context() as patch, suppress(PowerFailureError):
            patch.setattr(os, call, failing)
            getattr(file, step)(coin)
        will = Coin(coin, used=step == "use")
        assert file.read() in (was, will)
        getattr(file, step)(coin)
        assert file.read() == will


KILLED = """
import os, signal, sys
from pathlib import Path
from voxring.session.coins import CoinFile
from voxring.study import Study

folder, study = Path(sys.argv[1]), Study.of(name="killed", classes={"lesion": 1}, party=[{"name": n} for n in "abc"])


def deadly(call, number):
    real = getattr(os, call)

    def killing(*args, **options):
        nonlocal number
        number -= 1
        if number == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)

    setattr(os, call, killing)


STEPS = {
    "keep": "open 1, fsync 1, replace 1, fsync 2, unlink 1, unlink 2",
    "use": "open 1, fsync 1, link 1, fsync 2, unlink 1, unlink 2, unlink 3",
}
for step, calls in STEPS.items():
    for kept in (True, False) if step == "keep" else (True,):
        for call, number in (one.split() for one in calls.split(", ")):
            name = f"{step} {kept} {call} {number}"
            file = CoinFile(folder / name, study, "a")
            if kept:
                file.keep(bytes([1]) * 32)
            if os.fork() == 0:
                deadly(call, int(number))
                getattr(file, step)(bytes([1 if step == "use" else 2]) * 32)
                os._exit(0)
            _, status = os.wait()
            print(f"{name} {os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0}", flush=True)
"""


def test_a_party_that_is_killed_while_a_coin_is_stored_has_the_one_before_or_the_one_after() -> None:
    study = Study.of(name="killed", classes={"lesion": 1}, party=[{"name": name} for name in "abc"])
    memory = "/dev/shm"  # noqa: S108  (what a process wrote outlives it there, too, and nothing waits for a disk)
    killed = 0
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        told = subprocess.run(
            [sys.executable, "-c", KILLED, folder], check=True, capture_output=True, text=True, timeout=60
        )
        for line in told.stdout.splitlines():
            name, _, deadly = line.rpartition(" ")
            killed += deadly == str(int(signal.SIGKILL))
            file = CoinFile(Path(folder) / name, study, "a")
            first, second = Coin(b"\1" * 32, used=False), Coin(b"\2" * 32, used=False)
            uses, kept = name.startswith("use"), "True" in name
            was, will = first if kept else None, Coin(b"\1" * 32, used=True) if uses else second
            found = file.read()
            assert found in (was, will), name
            assert deadly != "0" or found == will, name
            # Started again, it uses that coin, or, if it has sent nothing under it, another one that all draw anew.
            again = b"\1" * 32 if found is not None and found.used else b"\3" * 32
            if again == b"\3" * 32:
                file.keep(again)
            file.use(again)
            assert file.read() == Coin(again, used=True)
            with pytest.raises(StudyError, match="another run has kept a coin"):
                file.use(b"\4" * 32)
    assert killed >= 13


def change_relayed(network: Network, kind: str, to: str, change: Callable[[dict], dict]) -> None:
    """Have the researcher tell one party other commitments or parts than it tells the rest."""
    honest = network.researcher.request

    def request(party: str) -> bytes | None:
        frame = honest(party)
        if frame is None or party != to or (message := decode(frame, limit=10**6)).kind != kind:
            return frame
        body = bodies.write_parts(change(bodies.read_parts(message.body, "abc", kind)))
        return encode(msgspec.structs.replace(message, body=body))

    network.researcher.request = request


def test_a_changed_opening_is_refused_and_named_and_no_coin_is_kept_for_it() -> None:
    network = Network(a_study())
    until(network, "b", "committed")
    network.parties["b"]._part = bytes(32)  # what it would rather have
    network.parties["b"]._checked_commitments = lambda message: bodies.read_parts(message.body, "abc", "")
    network.finish()
    assert "coin: b opened another part than it committed to" in str(network.errors[0])
    assert not network.coins


def test_a_party_refuses_an_opening_that_the_researcher_let_pass() -> None:
    network = Network(a_study())
    change_relayed(network, "openings", "a", lambda parts: parts | {"b": bytes(32)})
    network.finish()
    assert "a refused: coin: b opened another part than it committed to" in str(network.errors[0])
    assert network.parties["a"].state == "opened"
    assert "a" not in network.coins


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda parts: parts | {"a": bytes(32)}, "expected the one of a as it was sent"),
        (lambda parts: {"a": parts["a"]}, "expected 32 bytes of each party"),
        (lambda parts: parts | {"b": b"short"}, "expected 32 bytes of each party"),
        (lambda parts: {name: parts[name] for name in "cba"}, "expected 32 bytes of each party"),
    ],
)
def test_a_party_opens_only_when_it_holds_the_commitments_of_all(change: Callable, error: str) -> None:
    network = Network(a_study())
    change_relayed(network, "commitments", "a", change)
    network.finish()
    assert error in str(network.errors[0])
    assert network.parties["a"].state == "committed"
    kinds = [
        message.kind for message in (decode(frame, limit=10**6) for frame in network.seen) if message.sender == "a"
    ]
    assert "opening" not in kinds


def test_a_researcher_that_shows_parties_different_coins_is_found_by_their_neighbours() -> None:
    network = Network(a_study())
    other = bytes(32)

    def lie(parts: dict) -> dict:
        return parts | {"b": commitment(network.researcher.plan.digest, network.researcher.session, "b", other)}

    change_relayed(network, "commitments", "a", lie)
    change_relayed(network, "openings", "a", lambda parts: parts | {"b": other})
    network.finish()
    assert network.coins["a"] != network.coins["b"] == network.coins["c"]
    assert "have different rings: both need the same study file and the same coin" in str(network.errors[0])
    assert not network.researcher.done


def test_no_party_chooses_the_coin() -> None:
    """With all other parts fixed, each value of one honest part gives another coin."""
    session, digest = bytes(16), bytes(32)
    coins = set()
    for honest in range(256):
        parts = {"a": bytes(32), "b": honest.to_bytes(32, "big"), "c": bytes(32)}
        commitments = {name: commitment(digest, session, name, part) for name, part in parts.items()}
        assert len(set(commitments.values())) == 3  # equal parts of different parties do not show
        coins.add(coin_of(digest, session, commitments, parts))
    assert len(coins) == 256
    with pytest.raises(RemoteProtocolError, match="a part of each party"):
        coin_of(digest, session, commitments, {"a": parts["a"]})


def test_a_coin_that_cannot_be_kept_ends_the_session_before_any_sum() -> None:
    network = Network(a_study())

    def full(coin: bytes) -> None:
        raise StudyError("the disk is full")

    network.parties["b"]._keep = full
    network.finish()
    assert "b refused: it cannot keep the coin" in str(network.errors[0])
    assert isinstance(network.parties["b"].error, StudyError)


def test_the_coin_is_kept_for_its_owner_alone_and_never_changed(tmp_path: Path) -> None:
    file = CoinFile(tmp_path / "new" / "state", a_study(), "a")
    assert file.read() is None
    for coin in (b"\1" * 32, COIN):  # the second takes the place of one that was never used
        file.keep(coin)
        assert file.read() == Coin(coin, used=False)
        assert file.pending.stat().st_mode & 0o777 == 0o600
    file.use(COIN)
    file.use(COIN)
    assert file.read() == Coin(COIN, used=True)
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert file.path.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in file.path.parent.iterdir()] == [f"{a_study().digest}-a.json"]
    CoinFile(tmp_path, a_study(), "a").keep(bytes(32))
    (tmp_path / "coins" / file.pending.name).rename(file.pending)  # as if it could not be removed
    for change in (file.keep, file.use):
        with pytest.raises(StudyError, match="another run has kept a coin"):
            change(bytes(32))
    assert file.read() == Coin(COIN, used=True)
    assert CoinFile(tmp_path / "new" / "state", a_study(name="other"), "a").read() is None


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "expected the coin of a study, got something else: copy it from another party"),
        (b"\xff\xfe", "something else"),
        (b'{"digest": "00", "coin": "00"}', "something else"),
        (b'{"digest": "%s", "coin": "%s"}' % (b"0" * 64, b"0" * 64), "got that of 000000000000"),
    ],
)
def test_a_file_that_is_no_coin_of_the_study_is_refused(tmp_path: Path, content: bytes, error: str) -> None:
    file = CoinFile(tmp_path, a_study(), "a")
    assert file.read() is None
    file.pending.write_bytes(content)
    with pytest.raises(StudyError, match=error.replace("copy it from another party", "delete it, it was never used")):
        file.read()
    file.path.write_bytes(content)
    with pytest.raises(StudyError, match=error):
        file.read()


def test_a_state_folder_that_cannot_be_used_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="no coin can be kept there"):
        run_party(a_study(), "a", LocalTotals, state=tmp_path / "file", address=ANYWHERE, insecure=True)
    file = CoinFile(tmp_path, a_study(), "a")
    file.path.mkdir(parents=True)
    with pytest.raises(StudyError, match="cannot be read"):
        file.read()
    for change in (file.keep, file.use):
        with pytest.raises(StudyError, match=r"kept|cannot be read"):
            change(COIN)


def test_state_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert state_folder() == Path("/var/state/voxring")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert state_folder() == Path.home() / ".local" / "state" / "voxring"
