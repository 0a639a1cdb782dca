"""The ledger: its chain, what gets into it, who may run, and which run is too close to an earlier one."""

import json
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxring.batch import party_batch
from voxring.errors import ImageError, LocalProtocolError, PeerError, StudyError
from voxring.ring.message import VERSION, Message, decode, encode
from voxring.ring.sheet import sheet
from voxring.session import Account, InTwoPasses, Ledger, bodies, run_party, run_researcher
from voxring.session.account import NoAccount, party_of
from voxring.session.differencing import brought, objection
from voxring.session.ledger import parties_with_ledger
from voxring.session.party import Party
from voxring.study import Study
from voxring.totals import ClassTotals, LocalTotals

ANYWHERE = "tcp://127.0.0.1:0"


def a_study(names: str = "abc", *, window: int = 3, classes: dict | None = None, **privacy: int) -> Study:
    return Study.of(
        name="t",
        classes=classes or {"lesion": 1, "liver": 2},
        window={"size": window},
        standardise={"method": "rescale", "range": (-1000.0, 3000.0)},
        privacy={"min_patients": 3, **privacy},
        bounds={"voxels_per_party": 10**6},
        party=[{"name": name} for name in names],
    )


def patients(*seeds: int, window: int = 3) -> list[LocalTotals]:
    """Totals of one patient a seed, in both classes; n alone does not depend on the window."""

    def one(seed: int, label: int) -> ClassTotals:
        draw = random.Random(f"{seed} {label}")  # noqa: S311
        n, x = draw.randrange(1000, 9000), draw.randrange(1000)
        return ClassTotals(n, n * x * window, n * x, n * x * x, 1)

    return [LocalTotals({"lesion": one(seed, 1), "liver": one(seed, 2)}) for seed in seeds]


# The chain.


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path, "north")
    for number in range(5):
        ledger.append("test", {"number": number})
    return ledger


def tamper(ledger: Ledger, *statements: str) -> None:
    """Change the file as somebody would who holds it: without its triggers."""
    with sqlite3.connect(ledger.path) as db:
        for trigger in ("no_update", "no_delete", "no_gap"):
            db.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            db.execute(statement)
    db.close()


def test_a_ledger_holds_what_was_appended_in_order_for_its_owner_alone(ledger: Ledger, tmp_path: Path) -> None:
    entries = ledger.verified()
    assert [entry.kind for entry in entries] == ["opened", *["test"] * 5]
    assert [entry.content for entry in entries[1:]] == [f'{{"number":{number}}}' for number in range(5)]
    assert all(entry.time.endswith("+00:00") for entry in entries)
    assert entries == sorted(entries, key=lambda entry: entry.time)
    for path in (ledger.path, ledger.path.with_suffix(".salt")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(ledger.path.parent.stat().st_mode) == 0o700
    assert sorted(path.name for path in ledger.path.parent.iterdir()) == ["north.salt", "north.sqlite"]
    assert parties_with_ledger(tmp_path) == ["north"]
    assert Ledger(tmp_path, "north").verified() == entries
    assert entries[-1].hash in ledger.where()


@pytest.mark.parametrize("number", range(1, 7))
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("time", "'2020-01-01T00:00:00.000+00:00'"),
        ("kind", "'other'"),
        ("content", "'{\"number\":9}'"),
        ("content", "replace(content, '\"', ' \"')"),
        ("content", "CAST(content AS BLOB) || x'ff'"),
        ("previous", "'00'"),
        ("previous", "upper(previous) || ' '"),
        ("hash", "'00'"),
        ("hash", "upper(hash) || ' '"),
        ("sequence", "sequence + 100"),
        ("sequence", "sequence - 100"),
    ],
)
def test_a_change_of_any_field_of_any_entry_is_found(ledger: Ledger, number: int, field: str, value: str) -> None:
    tamper(ledger, f"UPDATE ledger SET {field} = {value} WHERE sequence = {number}")  # noqa: S608
    with pytest.raises(StudyError, match=r"broken at entry \d") as error:
        ledger.verified()
    if field in ("time", "kind", "content", "hash", "previous"):
        assert f"at entry {number}:" in str(error.value)


@pytest.mark.parametrize("number", range(1, 6))
def test_an_entry_that_is_missing_or_moved_is_found(ledger: Ledger, number: int) -> None:
    whole = ledger.path.read_bytes()
    tamper(ledger, f"DELETE FROM ledger WHERE sequence = {number}")  # noqa: S608
    with pytest.raises(StudyError, match=f"at entry {number}: expected number {number}, got {number + 1}"):
        ledger.verified()
    ledger.path.write_bytes(whole)
    tamper(
        ledger,
        f"DELETE FROM ledger WHERE sequence = {number}",  # noqa: S608
        *(f"UPDATE ledger SET sequence = {later - 1} WHERE sequence = {later}" for later in range(number + 1, 7)),  # noqa: S608
    )
    with pytest.raises(StudyError, match=f"at entry {number}: it does not name the hash"):
        ledger.verified()
    ledger.path.write_bytes(whole)
    tamper(
        ledger,
        f"UPDATE ledger SET sequence = 100 WHERE sequence = {number}",  # noqa: S608
        f"UPDATE ledger SET sequence = {number} WHERE sequence = {number + 1}",  # noqa: S608
        f"UPDATE ledger SET sequence = {number + 1} WHERE sequence = 100",  # noqa: S608
    )
    with pytest.raises(StudyError, match=f"at entry {number}: it does not name the hash"):
        ledger.verified()


def test_a_cut_tail_shows_only_against_a_noted_head(ledger: Ledger) -> None:
    head = ledger.verified()[-1].hash
    tamper(ledger, "DELETE FROM ledger WHERE sequence > 4")
    entries = ledger.verified()
    assert len(entries) == 4
    assert head not in {entry.hash for entry in entries}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger SET kind = 'other' WHERE sequence = 3",
        "DELETE FROM ledger WHERE sequence = 6",
        "DELETE FROM ledger",
        "INSERT OR REPLACE INTO ledger SELECT 3, time, 'other', content, previous, hash FROM ledger WHERE sequence = 3",
        "INSERT INTO ledger SELECT 8, time, kind, content, hash, hash FROM ledger WHERE sequence = 6",
        "INSERT INTO ledger SELECT 7, time, kind, content, previous, hash FROM ledger WHERE sequence = 6",
        "INSERT INTO ledger SELECT 0, time, kind, content, previous, hash FROM ledger WHERE sequence = 1",
        "INSERT INTO ledger SELECT NULL, time, kind, content, previous, 'x' FROM ledger WHERE sequence = 1",
    ],
)
def test_sql_refuses_all_but_to_continue(ledger: Ledger, statement: str) -> None:
    before = ledger.entries()
    db = sqlite3.connect(ledger.path)
    with pytest.raises(sqlite3.IntegrityError, match=r"only added to|continues the chain"):
        db.execute(statement)
    db.close()
    assert ledger.verified() == before


def test_another_partys_ledger_or_salt_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    Ledger(tmp_path, "south").append("test", {})
    here = ledger.path.parent
    (here / "south.sqlite").rename(here / "east.sqlite")
    with pytest.raises(StudyError, match="expected the ledger of east, got that of another"):
        Ledger(tmp_path, "east").verified()
    north = here / "north.salt"
    kept = north.read_bytes()
    for salt, error in ((bytes(32), "expected the salt that north.sqlite began with"), (b"x", "expected 32 bytes")):
        north.write_bytes(salt)
        with pytest.raises(StudyError, match=error):
            ledger.append("test", {})
    north.unlink()
    with pytest.raises(StudyError, match="missing beside its ledger"):
        ledger.append("test", {})
    assert not north.exists()
    north.write_bytes(kept)
    ledger.append("test", {})


def test_the_first_salt_counts(ledger: Ledger) -> None:
    salt = ledger.path.with_suffix(".salt")
    kept = salt.read_bytes()
    ledger._write_salt()  # as a process does that looked for it a moment too early
    assert salt.read_bytes() == kept
    assert sorted(path.suffix for path in ledger.path.parent.iterdir()) == [".salt", ".sqlite"]


def test_two_sessions_in_one_process_are_two_accounts(tmp_path: Path) -> None:
    account = approved(tmp_path, "a", a_study())
    party = Party(a_study(), "a", random.Random(1).randbytes, coin=bytes(32))  # noqa: S311
    for session in (1, 2):
        party.session = bytes([session]) * 16
        account.answered(party, reply(party, "welcome", b""))
    account.ended(party)
    account.ended(party)
    contents = [(entry.kind, json.loads(entry.content)) for entry in account.ledger.verified()[2:]]
    assert [kind for kind, _ in contents] == ["session", "end", "session", "end"]
    assert [one["session"] for _, one in contents] == [number * 16 for number in ("01", "01", "02", "02")]
    assert contents[1][1]["reason"] == "another session began"


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "a")
    assert not ledger.exists
    with pytest.raises(StudyError, match="no such ledger"):
        ledger.entries()
    assert not ledger.path.parent.exists()
    for name in ("", "../a", "a/b", "."):
        with pytest.raises(StudyError, match="expected the name of a party"):
            Ledger(tmp_path, name)
    ledger.append("test", {})
    ledger.path.write_bytes(b"nothing of the kind" * 100)
    for use in (ledger.entries, ledger.verified, lambda: ledger.append("test", {})):
        with pytest.raises(StudyError, match="cannot be read or written"):
            use()
    ledger.path.write_bytes(b"")
    with pytest.raises(StudyError, match="cannot be read or written: no such table"):
        ledger.verified()
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="choose --state"):
        Ledger(tmp_path / "file", "a").append("test", {})


def test_tokens_tell_parts_apart_and_parties(tmp_path: Path) -> None:
    one, two = Ledger(tmp_path, "a"), Ledger(tmp_path, "b")
    tokens = [one.token("n", 1), one.token("n", 11), one.token("n", 1, 1), one.token("m", 1), two.token("n", 1)]
    assert len(set(tokens)) == 5
    assert one.token("n", 1) == Ledger(tmp_path, "a").token("n", 1) == tokens[0]
    assert all(len(token) == 32 for token in tokens)


WRITER = """
import sys
from voxring.session.ledger import Ledger
ledger = Ledger(sys.argv[1], "north")
for number in range(int(sys.argv[2])):
    ledger.append("test", {"who": sys.argv[3], "number": number, "long": "x" * int(sys.argv[4])})
    print(number, flush=True)
"""


def writer(folder: Path, count: int, who: str, length: int = 10) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(folder), str(count), who, str(length)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_writers_take_turns(tmp_path: Path) -> None:
    """Processes and threads that all begin with no ledger: one chain, and nobody's entry is lost."""
    processes = [writer(tmp_path, 8, str(who)) for who in range(3)]

    def write(who: int) -> None:
        for number in range(8):
            Ledger(tmp_path, "north").append("test", {"who": str(who), "number": number})

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3, 6)))
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    contents = [json.loads(entry.content) for entry in Ledger(tmp_path, "north").verified()[1:]]
    for who in range(6):
        assert [one["number"] for one in contents if one["who"] == str(who)] == list(range(8))


def test_a_judgement_sees_all_that_others_wrote_before_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "north")
    ledger.append("test", {})

    def add(_: int) -> None:
        Ledger(tmp_path, "north").append_judged("sum", lambda entries: {"before": len(entries)})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(8)))
    entries = ledger.verified()
    assert [json.loads(entry.content)["before"] for entry in entries[2:]] == list(range(2, 10))


def test_a_writer_that_is_refused_leaves_nothing(ledger: Ledger) -> None:
    before = ledger.verified()

    def refuse(entries: Sequence) -> None:
        raise StudyError("no")

    with pytest.raises(StudyError, match=r"^no$"):
        ledger.append_judged("test", refuse)
    assert ledger.verified() == before


def test_a_ledger_that_somebody_holds_is_said_to_be_held(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxring.session.ledger.BUSY_SECONDS", 0.1)
    db = sqlite3.connect(ledger.path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    with pytest.raises(StudyError, match="locked: if another process holds it, wait"):
        ledger.append("test", {})
    db.close()
    ledger.append("test", {})


@pytest.mark.parametrize("seed", range(4))
def test_a_kill_in_the_middle_of_a_write_leaves_a_whole_ledger(tmp_path: Path, seed: int) -> None:
    """What was said to be written is there; at most one entry more."""
    process = writer(tmp_path, 10**6, "x", 200_000)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(random.Random(seed).uniform(0.05, 0.3))  # noqa: S311
    process.send_signal(signal.SIGKILL)
    said = 1 + len(process.communicate()[0].split())
    ledger = Ledger(tmp_path, "north")
    entries = ledger.verified()
    assert said <= len(entries) - 1 <= said + 1
    ledger.append("test", {})
    assert len(ledger.verified()) == len(entries) + 1


# Approval.


def test_a_study_runs_only_after_its_own_digest_was_approved(tmp_path: Path) -> None:
    study = a_study()
    account = Account(Ledger(tmp_path, "a"), study, command="voxring party approve here.toml --name a")
    refused = rf"a has not approved study {study.digest[:12]}.*: voxring party approve here\.toml --name a$"
    with pytest.raises(StudyError, match=refused):
        account.check_approved()
    assert not account.ledger.exists
    for wrong in ("", study.digest[:11], study.digest[1:], "0" * 64, study.digest + "0", a_study(window=5).digest):
        with pytest.raises(StudyError, match="expected the study's digest"):
            account.approve(wrong, how="test")
    with pytest.raises(StudyError, match=refused):
        account.check_approved()
    account.approve(f" {study.digest[:12].upper()}\n", how="test", sheet="what was shown")
    account.check_approved()
    Account(Ledger(tmp_path, "a"), study).check_approved()
    for other in (a_study(window=5), a_study("abcd"), a_study(min_patients=2)):
        with pytest.raises(StudyError, match=f"has not approved study {other.digest[:12]}"):
            Account(account.ledger, other).check_approved()
    with pytest.raises(StudyError, match="'z' is none of them"):
        Account(Ledger(tmp_path, "z"), study).approve(study.digest, how="test")
    with pytest.raises(StudyError, match="names no parties yet"):
        Account(Ledger(tmp_path, "a"), Study.of(name="t", classes={"x": 1})).approve(study.digest, how="test")
    (approval,) = [json.loads(entry.content) for entry in account.ledger.entries() if entry.kind == "approval"]
    assert (approval["digest"], approval["participants"]) == (study.digest, ["a", "b", "c"])
    assert len(approval["sheet"]) == 64


def test_a_run_without_approval_or_with_a_changed_ledger_is_refused_before_it_listens(tmp_path: Path) -> None:
    study = a_study()
    account = Account(Ledger(tmp_path, "a"), study)
    run = partial(
        run_party, study, "a", LocalTotals, state=tmp_path, ledger=account, address="tcp://256.0.0.1:1", insecure=True
    )
    with pytest.raises(StudyError, match="has not approved"):
        run()
    account.approve(study.digest, how="test")
    with pytest.raises(PeerError, match="cannot listen"):
        run()
    tamper(account.ledger, "UPDATE ledger SET time = 'x' WHERE sequence = 2")
    with pytest.raises(StudyError, match="broken at entry 2"):
        run()


def test_the_party_of_a_study_is_the_one_that_has_a_ledger(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="0 parties of the study"):
        party_of(a_study(), tmp_path)
    Ledger(tmp_path, "b").append("test", {})
    Ledger(tmp_path, "z").append("test", {})
    assert party_of(a_study(), tmp_path) == "b"
    Ledger(tmp_path, "c").append("test", {})
    with pytest.raises(StudyError, match="2 parties of the study"):
        party_of(a_study(), tmp_path)


# Differencing.


def hashed(*parts: object) -> str:
    return str(parts)


def judged(first: tuple[Study, list[LocalTotals]], second: tuple[Study, list[LocalTotals]]) -> str:
    return objection(brought(*first, hashed), brought(*second, hashed)) or ""


MANY = list(range(10))
FEW, FEW_HOSPITALS = "fewer than privacy.min_patients = 3 patients", "fewer than privacy.min_parties = 3 hospitals"


@pytest.mark.parametrize(
    ("first", "second", "options", "refused"),
    [
        (MANY, MANY, {}, ""),
        (MANY, MANY[::-1], {}, ""),
        (MANY, MANY, {"window": 5}, ""),
        (MANY, [*MANY, 10], {}, FEW),
        ([*MANY, 10], MANY, {}, FEW),
        (MANY, [*MANY, 10, 11], {}, FEW),
        (MANY, [*MANY, 10, 11, 12], {}, ""),
        (MANY, [*MANY[1:], 10], {}, FEW),  # one for another: their difference
        (MANY, [*MANY, 9], {}, FEW),  # one twice
        ([], [1], {}, FEW),
        ([1], [2], {}, FEW),
        ([1, 2], [3, 4], {}, FEW),
        ([1, 2, 3], [4, 5, 6], {}, ""),
        (MANY, [*MANY, 10], {"window": 5}, FEW),
        ([1], [2], {"window": 5}, ""),  # another question about others
        ([], [1], {"window": 5}, ""),
        (MANY, [*MANY, 10], {"min_patients": 1}, FEW),  # the earlier study's limit holds, too
        (MANY, [*MANY, 10, 11, 12], {"min_patients": 5}, "min_patients = 5"),
        (MANY, MANY, {"names": "abcd"}, FEW_HOSPITALS + " take part in only one of both: d"),
        (MANY, MANY, {"names": "abcde"}, "of both: d, e"),
        (MANY, MANY, {"names": "abde"}, ""),  # c, d, e
        (MANY, MANY, {"names": "abde", "min_parties": 4}, "of both: c, d, e"),
        (MANY, MANY, {"names": "abcd", "window": 5}, FEW_HOSPITALS),
        (MANY, [*MANY, *range(20, 40)], {"names": "abcd"}, FEW_HOSPITALS),
        (MANY, range(20, 40), {"names": "abcd"}, ""),  # a year later
        (MANY, range(20, 40), {}, ""),
        (MANY, [*MANY[:4], *range(20, 40)], {"names": "abcd"}, ""),  # most of what was then is not there
        (MANY, [*MANY[:5], *range(20, 40)], {"names": "abcd"}, FEW_HOSPITALS),
        ([], [], {"names": "abcd"}, FEW_HOSPITALS),
        ([], [], {"names": "abcd", "window": 5}, ""),
        ([], [], {}, ""),
        ([1], [2], {"names": "abde"}, ""),  # as many differ as one total may tell
        ([1], [2], {"names": "abcd"}, FEW),
    ],
)
def test_a_run_too_close_to_an_earlier_one_is_refused(first, second, options: dict, refused: str) -> None:
    study = a_study(**{"names": "abc"} | options)
    mine = patients(*second, window=options.get("window", 3))
    why = judged((a_study(), patients(*first)), (study, mine))
    assert refused in why
    assert bool(refused) == bool(why)


@pytest.mark.parametrize(
    ("classes", "refused"),
    [
        ({"lesion": 1, "liver": 2}, True),
        ({"tumour": 1}, True),  # a name is a name, the label is what counts
        ({"lesion": 7}, False),
        ({"lesion": "lesion"}, True),  # a segment's name, for what had a number
        ({"spleen": "lesion"}, False),
    ],
)
def test_classes_are_told_by_label_and_by_what_they_hold(classes: dict, refused: bool) -> None:
    totals = patients(*MANY, 10)
    if "tumour" in classes:
        totals = [LocalTotals({"tumour": one["lesion"]}) for one in totals]
    if "spleen" in classes:
        totals = [LocalTotals({"spleen": one["lesion"] + ClassTotals(1)}) for one in totals]
    why = judged((a_study(), patients(*MANY)), (a_study(classes=classes), totals))
    assert bool(why) == refused


def test_saying_how_many_axes_images_have_makes_no_other_question() -> None:
    said = Study.of(**msgspec.to_builtins(a_study()) | {"window": {"size": 3, "axes": 3}})
    assert said.digest != a_study().digest
    assert FEW in judged((a_study(), patients(*MANY)), (said, patients(*MANY, 10)))
    assert brought(said, patients(*MANY), hashed).question == brought(a_study(), patients(*MANY), hashed).question


def test_a_changed_image_is_one_patient_though_n_is_the_same() -> None:
    def changed(one: LocalTotals) -> LocalTotals:
        return LocalTotals(
            {name: ClassTotals(of.voxels, of.sum + 1, of.total, of.squares, 1) for name, of in one.classes.items()}
        )

    then = patients(*MANY)
    for count, refused in ((1, True), (2, True), (3, False)):
        now = [changed(one) for one in then[:count]] + then[count:]
        assert bool(judged((a_study(), then), (a_study(), now))) == refused
    assert not judged((a_study(), then), (a_study(window=5), [changed(then[0]), *then[1:]]))  # as the docstring says


def naive_objection(first: dict, second: dict) -> bool:
    """The rule of the docstring, from the patients' own integers, by taking away one by one."""

    def only(one: list, two: list) -> int:
        rest = list(two)
        alone = 0
        for item in one:
            if item in rest:
                rest.remove(item)
            else:
                alone += 1
        return alone

    hospitals = [name for name in "abcdef" if (name in first["names"]) != (name in second["names"])]
    if len(hospitals) >= max(first["min_parties"], second["min_parties"]):
        return False
    least = max(first["min_patients"], second["min_patients"])
    same_question = first["window"] == second["window"]
    for label, old in first["classes"].items():
        for other, new in second["classes"].items():
            old_n, new_n = [n for n, _ in old], [n for n, _ in new]
            both = len(old_n) - only(old_n, new_n)
            smaller = min(len(old_n), len(new_n))
            same_images = smaller > 0 and both / smaller >= 0.5
            if label == other:
                comparable = same_images or same_question
            else:
                comparable = (type(label) is not type(other)) and same_images
            if not comparable:
                continue
            apart = [max(only(old_n, new_n), only(new_n, old_n))]
            if same_question:
                apart.append(max(only(old, new), only(new, old)))
            if any(1 <= patients < least for patients in apart):
                return True
            if len(hospitals) >= 1 and (same_images or len(old_n) + len(new_n) == 0):
                return True
    return False


PATIENTS = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 1)), max_size=5)
RUNS = st.fixed_dictionaries(
    {
        "names": st.sets(st.sampled_from("bcdef"), min_size=3).map(lambda names: "a" + "".join(sorted(names))),
        "min_parties": st.integers(3, 4),
        "min_patients": st.integers(1, 4),
        "window": st.sampled_from([3, 5]),
        "classes": st.dictionaries(st.sampled_from([1, 2, "lesion"]), PATIENTS, min_size=1, max_size=2),
    }
)


@settings(max_examples=int(os.environ.get("VOXRING_SOAK", "200")), deadline=None)
@given(RUNS, RUNS, st.booleans())
def test_the_rule_equals_its_naive_twin(first: dict, second: dict, alike: bool) -> None:
    if alike:  # runs that are close to each other are drawn seldom
        second = {**second, "names": first["names"], "classes": {**second["classes"], **first["classes"]}}
        second["classes"] = dict(list(second["classes"].items())[:3])

    def bring(run: dict):
        classes = {f"c{label}": label for label in run["classes"]}
        study = a_study(
            run["names"],
            window=run["window"],
            classes=classes,
            min_parties=run["min_parties"],
            min_patients=run["min_patients"],
        )
        totals = [
            LocalTotals({f"c{label}": ClassTotals(n, x, x, x, 1)})
            for label, held in run["classes"].items()
            for n, x in held
        ]
        return brought(study, totals, hashed)

    assert (objection(bring(first), bring(second)) is not None) == naive_objection(first, second)


# In a session.


def approved(folder: Path, name: str, study: Study, **options: str) -> Account:
    account = Account(Ledger(folder, name), study, **options)
    account.approve(study.digest, how="test")
    return account


def admitted(account: Account, session: int, given: bool = True) -> None:
    """Go through a session as far as the ledger sees it."""
    party = Party(account._study, account.ledger.party, random.Random(1).randbytes, coin=bytes(32))  # noqa: S311
    party.session = bytes([session]) * 16
    account.answered(party, reply(party, "welcome", b""))
    account.admit(party.session, sum(account._patients, LocalTotals()))
    if given:
        account.sends(reply(party, "share", b"", sum="voxels"))
    party.state = "done"
    account.ended(party)


def reply(party: Party, kind: str, body: bytes, **fields: object) -> bytes:
    return encode(
        Message(
            kind=kind, digest=bytes(32), session=party.session, sender=party.name, receiver="b", body=body, **fields
        )
    )


def test_how_many_images_were_left_out_is_in_the_ledger(tmp_path: Path) -> None:
    account = approved(tmp_path, "a", a_study())
    for session, skipped in ((1, 0), (2, 3)):
        account.add_up(patients(*MANY), skipped)
        admitted(account, session)
    brought = [json.loads(e.content) for e in account.ledger.verified() if e.kind == "brought"]
    assert [entry["skipped"] for entry in brought] == [0, 3]


def test_earlier_runs_count_when_a_share_was_given_or_may_have_been(tmp_path: Path) -> None:
    account = approved(tmp_path, "a", a_study())
    account.add_up(patients(*MANY))
    admitted(account, 1, given=False)
    account.add_up(patients(*MANY, 10))
    admitted(account, 2)
    admitted(account, 3)  # an exact repeat
    account.add_up(patients(*MANY))
    with pytest.raises(StudyError, match=r"Entry 7 of the ledger, 20..-..-.., study 't', .*--allow-differencing"):
        admitted(account, 4)
    crashed = Account(Ledger(tmp_path, "b"), a_study())
    crashed.add_up(patients(*MANY))
    crashed.admit(bytes(16), sum(patients(*MANY), LocalTotals()))  # and then nothing more
    crashed.add_up(patients(*MANY, 10))
    with pytest.raises(StudyError, match=FEW):
        admitted(crashed, 5)


def test_an_operator_may_overrule_with_a_reason_that_is_kept(tmp_path: Path) -> None:
    first = approved(tmp_path, "a", a_study())
    first.add_up(patients(*MANY))
    admitted(first, 1)
    blank = Account(first.ledger, a_study(), allow_differencing="  ")
    blank.add_up(patients(*MANY, 10))
    with pytest.raises(StudyError, match=FEW):
        admitted(blank, 2)
    second = Account(first.ledger, a_study(), allow_differencing="the patient agreed")
    second.add_up(patients(*MANY, 10))
    admitted(second, 3)
    bringing = [json.loads(entry.content) for entry in first.ledger.verified() if entry.kind == "brought"]
    assert [one["reason"] for one in bringing] == ["", "the patient agreed"]
    assert FEW in bringing[1]["overruled"][0]
    third = Account(first.ledger, a_study(), allow_differencing="not needed")
    third.add_up(patients(*MANY, *range(20, 30)))
    admitted(third, 4)
    last = [json.loads(entry.content) for entry in first.ledger.verified() if entry.kind == "brought"][-1]
    assert (last["reason"], last["overruled"]) == ("", [])


def test_of_two_runs_side_by_side_one_is_refused(tmp_path: Path) -> None:
    approved(tmp_path, "a", a_study())
    barrier, refused = threading.Barrier(2), []

    def run(session: int) -> None:
        account = Account(Ledger(tmp_path, "a"), a_study())
        totals = account.add_up(patients(*MANY, *range(10, 10 + session)))
        barrier.wait()
        try:
            account.admit(bytes([session]) * 16, totals)
        except StudyError as error:
            refused.append(str(error))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))
    assert len(refused) == 1


def test_no_share_leaves_that_the_ledger_was_not_asked_about(tmp_path: Path) -> None:
    account = approved(tmp_path, "a", a_study())
    totals = account.add_up(patients(*MANY))
    with pytest.raises(LocalProtocolError, match="not those that were added up"):
        account.admit(bytes(16), totals + patients(99)[0])
    party = Party(a_study(), "a", random.Random(1).randbytes, coin=bytes(32))  # noqa: S311
    party.session = b"\1" * 16
    share = reply(party, "share", b"", sum="voxels")
    status = reply(party, "status", bodies.write_status(bodies.Status("ready", "", share)))
    announced = [reply(party, kind, b"", sum="voxels") for kind in ("stream", "door")]
    for frame in (share, status, *announced):
        with pytest.raises(LocalProtocolError, match="after what it is made of was admitted"):
            account.sends(frame)
        with pytest.raises(LocalProtocolError, match="after what it is made of was admitted"):
            account.answered(party, frame)
    account.admit(party.session, totals)
    account.sends(share)
    account.answered(party, status)


class Site:
    """Hospitals with files, that run studies over sockets, each with its ledger."""

    def __init__(self, folder: Path, names: str = "abc") -> None:
        self.folder, self.names = folder, names
        self.images = {name: list(range(4)) for name in names}
        for name in names:
            (folder / name).mkdir()
            self.write(name, 6)

    def write(self, name: str, count: int) -> None:
        draw = np.random.default_rng(ord(name))
        for i in range(count):
            np.save(self.folder / name / f"scan-{i}.npy", draw.integers(-1000, 1000, (3, 8, 9), np.int16))
            np.save(self.folder / name / f"truth-{i}.npy", draw.integers(0, 3, (3, 8, 9), np.uint8))

    def manifest(self, name: str) -> Path:
        path = self.folder / name / "manifest.csv"
        rows = [f"scan-{i}.npy,truth-{i}.npy,patient-{name}-{i}" for i in self.images[name]]
        path.write_text("\n".join(["image,ground_truth,patient", *rows]))
        return path

    def state(self, name: str) -> Path:
        return self.folder / f"state-{name}"

    def run(self, study: Study, accounts: dict[str, NoAccount] | None = None, **allow: str):
        """Return the answer, or what each party or the researcher (as 'R') ended with."""
        where, all_here = {}, threading.Event()

        def listening(name: str, address: str) -> dict[str, str]:
            where[name] = address
            if len(where) == len(study.parties):
                all_here.set()
            assert all_here.wait(20)
            return dict(where)

        def party(name: str):
            account = approved(self.state(name), name, study, allow_differencing=allow.get(name, ""))

            def totals(study: Study) -> LocalTotals:
                return account.add_up(party_batch(self.manifest(name), study).patients)

            def landmarks() -> LocalTotals:
                return account.add_up_landmarks(party_batch(self.manifest(name), study).patients)

            return run_party(
                study,
                name,
                InTwoPasses(landmarks, totals) if study.agrees else partial(totals, study),
                state=self.state(name),
                ledger=account,
                address=ANYWHERE,
                timeout=5,
                insecure=True,
                listening=partial(listening, name),
            )

        with ThreadPoolExecutor(len(study.parties) + 1) as pool:
            parties = {name: pool.submit(party, name) for name in study.parties}
            assert all_here.wait(20)
            ended: dict[str, object] = {}
            try:
                ended["R"] = run_researcher(study, peers=where, timeout=5, insecure=True)[0]
            except PeerError as error:
                ended["R"] = error
            for name, future in parties.items():
                ended[name] = future.exception(timeout=15) or future.result()
        return ended

    def entries(self, name: str) -> list[tuple[str, dict]]:
        entries = Ledger(self.state(name), name).verified()
        return [(entry.kind, json.loads(entry.content)) for entry in entries]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path, "abcd")
    # Compiles the kernels, which makes syntax trees: CPython 3.11 fails at times when several threads do.
    party_batch(site.manifest("a"), a_study())
    return site


def test_a_real_run_leaves_its_account_and_nothing_of_the_hospitals(site: Site) -> None:
    study = a_study()
    ended = site.run(study)
    answer = ended["R"]
    assert not any(isinstance(one, Exception) for one in ended.values()), ended
    for name in "abc":
        entries = site.entries(name)
        assert [kind for kind, _ in entries] == ["opened", "approval", "session", "brought", "phase", "phase", "end"]
        content = dict(entries)
        begun = content["session"]
        assert (begun["study"], begun["digest"], begun["protocol"]) == ("t", study.digest, VERSION)
        assert begun["participants"] == ["a", "b", "c"]
        n = {of: one.voxels for of, one in answer.items()}
        assert [one["n"] for kind, one in entries if kind == "phase"] == [n, n]
        assert [one["phase"] for kind, one in entries if kind == "phase"] == ["n", "μ"]
        assert content["end"]["outcome"] == "done"
        assert content["end"]["given"] == ["voxels", "sum", "sdsum"]
        assert {one["session"] for kind, one in entries[2:]} == {begun["session"]}
        sent = [tuple(row) for _, one in entries for row in one.get("sent", ())]
        kinds = Counter(kind for kind, *_ in sent)
        assert {"welcome", "opening", "ok", "status"} <= set(kinds)
        assert all(len(sha) == 64 and size > 60 and times >= 1 for _, _, size, sha, times in sent)

        raw = Ledger(site.state(name), name).path.read_bytes()
        totals = party_batch(site.manifest(name), study).patients
        everything = sum(totals, LocalTotals())
        own = {
            str(number)
            for one in (*totals, everything)
            for of in one.classes.values()
            for number in (of.sum, of.total, of.squares)
        }
        assert len(own) > 20
        private = [*own, "patient-", "scan-", "truth-", "manifest", str(site.folder), site.folder.name, ".npy"]
        assert not [text for text in private if text.encode() in raw]
        for of in everything.classes.values():  # n alone is short: look for it between what may stand beside a number
            assert not any(f"{left}{of.voxels}{right}".encode() in raw for left in ":[, " for right in ",]} ")
        salt = Ledger(site.state(name), name).path.with_suffix(".salt").read_bytes()
        assert salt not in raw
        assert salt.hex().encode() not in raw


def test_the_frames_in_the_ledger_are_those_that_were_sent(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    noted: list[bytes] = []
    sends = Account.sends

    def record(self: Account, frame: bytes) -> None:
        if self.ledger.party == "a":
            noted.append(frame)
        sends(self, frame)

    monkeypatch.setattr(Account, "sends", record)
    left: list[bytes] = []
    from voxring.net import Link, Listener

    ask, made = Link.ask, Listener.__init__

    def asks(self: Link, frame: bytes, timeout: float) -> bytes:
        if decode(frame, limit=10**6).sender == "a":
            left.append(frame)
        return ask(self, frame, timeout)

    def listens(self: Listener, address: str, answer, closed, *, max_frame: int) -> None:
        def through(frame: bytes, pipe: int) -> bytes:
            answered = answer(frame, pipe)
            if decode(answered, limit=10**6).sender == "a":
                left.append(answered)
            return answered

        made(self, address, through, closed, max_frame=max_frame)

    monkeypatch.setattr(Link, "ask", asks)
    monkeypatch.setattr(Listener, "__init__", listens)
    site.run(a_study())
    assert Counter(noted) == Counter(left)
    rows = [row for _, one in site.entries("a") for row in one.get("sent", ())]
    shas = {row[3] for row in rows}
    late = [frame for frame in left if hashlib.sha256(frame).hexdigest() not in shas]
    # What is answered while the party waits for the researcher to hang up comes after the last entry.
    assert {decode(frame, limit=10**6).kind for frame in late} <= {"status", "ok"}
    shares = [decode(frame, limit=10**6) for frame in left]
    assert sum(message.kind == "share" for message in shares) in (0, 3)
    for kind, receiver, size, sha, times in rows:
        same = [frame for frame in left if hashlib.sha256(frame).hexdigest() == sha]
        assert {(decode(f, limit=10**6).kind, decode(f, limit=10**6).receiver, len(f)) for f in same} == {
            (kind, receiver, size)
        }
        assert times >= 1


def test_runs_over_sockets_are_refused_when_they_are_too_close(site: Site) -> None:
    study = a_study()
    first = site.run(study)["R"]
    assert site.run(study)["R"] == first  # an exact repeat
    site.images["b"].append(4)  # one patient more
    ended = site.run(study)
    assert isinstance(ended["b"], StudyError), ended
    assert FEW in str(ended["b"])
    told = str(ended["R"])
    assert "b ended the session: its ledger does not allow this run beside an earlier one" in told
    assert "min_patients" not in told
    kind, end = site.entries("b")[-1]
    assert (kind, end["outcome"], end["given"]) == ("end", "failed", [])
    assert "its ledger does not allow" in end["reason"]
    kind, end = site.entries("a")[-1]
    assert (kind, end["outcome"]) == ("end", "aborted")
    assert "b ended the session: its ledger does not allow" in end["reason"]
    for name in "acd":  # one hospital more, the others the same; a, b and c each see it, d does not
        site.manifest(name)
    site.images["b"].pop()
    ended = site.run(a_study("abcd"))
    assert any(FEW_HOSPITALS in str(ended[name]) for name in "abc")
    assert isinstance(ended["R"], PeerError), ended
    answered = site.run(a_study("abcd"), a="agreed", b="agreed", c="agreed")["R"]
    assert isinstance(answered, dict)


def test_the_reason_of_a_failure_holds_no_path(site: Site) -> None:
    (site.folder / "c" / "truth-2.npy").write_bytes(b"no image")
    ended = site.run(a_study())
    assert isinstance(ended["c"], ImageError), ended
    for name in "abc":
        kind, end = site.entries(name)[-1]
        assert kind == "end"
        assert "it stopped while computing its local totals" in end["reason"]
        assert end["given"] == []
        assert b"truth-" not in Ledger(site.state(name), name).path.read_bytes()
    site.write("c", 6)
    assert isinstance(site.run(a_study())["R"], dict)


@pytest.mark.parametrize("at", ["session", "brought", "phase", "end"])
def test_a_party_that_cannot_write_its_ledger_ends_the_session(
    site: Site, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    insert = "voxring.session.ledger._insert"
    from voxring.session import ledger

    honest = ledger._insert

    def full(db: sqlite3.Connection, kind: str, content: object) -> object:
        if kind == at and db.execute("PRAGMA database_list").fetchone()[2].endswith("a.sqlite"):
            raise sqlite3.OperationalError("database or disk is full")
        return honest(db, kind, content)

    monkeypatch.setattr(insert, full)
    ended = site.run(a_study())
    assert isinstance(ended["a"], StudyError), ended
    assert "disk is full" in str(ended["a"])
    assert isinstance(ended["R"], dict if at == "end" else PeerError), ended
    if at != "end":
        assert "its ledger" in str(ended["R"])
        end = dict(site.entries("a")).get("end", {"given": [], "reason": "its ledger"})
        assert end["given"] == ([] if at != "phase" else ["voxels"])
        assert "its ledger" in end["reason"]
        assert "/" not in end["reason"]


def test_the_sheet_says_what_the_ledger_does() -> None:
    def implied(study: Study) -> str:
        (section,) = [one for one in sheet(study).sections if one.title == "What the results themselves imply"]
        return " ".join(section.sentences)

    text = implied(a_study())
    for words in ("keeps a ledger", "fewer than 3 (privacy.min_parties)", "fewer than 3 patients", "two by two"):
        assert words in text
    assert "it refuses none for its patients" in implied(a_study(min_patients=1))
    assert "it refuses none" not in text
