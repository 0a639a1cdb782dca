"""Simulated studies as the library runs them, and how they end."""

import subprocess
import sys

import numpy as np
import pytest

from voxring import BoundError, ImageError, PeerError, Study, StudyError
from voxring.net import PrivateKey
from voxring.session import state_folder
from voxring.simulation import pooled_result, simulate, with_parties
from voxring.study import Party

NAMES = ("x", "y", "z", "w")


@pytest.fixture
def manifests(tmp_path):
    rng = np.random.default_rng(11)
    made = {}
    for name in NAMES:
        folder = tmp_path / name
        folder.mkdir()
        lines = ["image,ground_truth,patient"]
        for i in range(2):
            np.save(folder / f"i{i}.npy", rng.integers(-1000, 1000, (3, 8, 9), np.int16))
            np.save(folder / f"g{i}.npy", rng.integers(0, 3, (3, 8, 9), np.uint8))
            lines.append(f"i{i}.npy,g{i}.npy,p{i}")
        made[name] = folder / "m.csv"
        made[name].write_text("\n".join(lines))
    return made


def study_of(**tables):
    return Study.of(
        name="test", classes={"a": 1, "b": 2, "c": 9}, window={"size": [1, 3, 4], "border": "clip"}, **tables
    )


SCRIPT = """
import sys
from voxring import Study, party_totals, simulate
from voxring.batch import party_batch
study = Study.of(name="test", classes={"a": 1, "b": 2}, window={"size": 3})
manifests = dict(zip("xyz", sys.argv[1:]))
assert party_batch(manifests["x"], study, workers=2).totals == party_totals(manifests["x"], study)
print(simulate(study, manifests).answer["a"].voxels)
"""


def test_a_script_simulates_and_has_workers_without_a_guard_of_its_main_code(manifests, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), *(str(manifests[name]) for name in "xyz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    alone = {name: manifests[name] for name in "xyz"}
    assert done.stdout == f"{pooled_result(study_of(), alone).answer['a'].voxels}\n"


def test_four_parties_equal_pooled_and_an_absent_class_is_withheld(manifests):
    said = []
    run = simulate(study_of(), manifests, notify=lambda who, what: said.append((who, what)))
    assert run.answer == pooled_result(run.study, manifests).answer
    assert run.answer["c"] == "fewer than 2 voxels in all (privacy.min_voxels)"
    assert set(run.parties) == set(NAMES)
    for heard in run.parties.values():
        assert heard.means == {name: run.answer[name].mean for name in ("a", "b")}
        assert heard.counts == {name: run.answer[name].voxels for name in ("a", "b")}
    assert {who for who, _ in said} == {*NAMES, "researcher"}
    assert not any(state_folder().parent.iterdir())  # no coin, no ledger


def test_a_study_with_keys_and_a_relay_is_simulated_without_them(manifests):
    """The keys are not here and the relay may not be reached: the run makes keys of its own, and the study stays."""
    keys = [PrivateKey(bytes([i]) * 32).public for i in range(4)]
    parties = [{"name": name, "key": key} for name, key in zip("xyz", keys, strict=False)]
    study = study_of(party=parties, researcher={"key": keys[3]}, relay="tcp://127.0.0.1:1")
    three = {name: manifests[name] for name in "xyz"}
    run = simulate(study, three)
    assert run.study == study
    assert run.answer == pooled_result(study, three).answer


def test_parties_must_be_those_of_the_study(manifests):
    named = study_of().with_parties([Party(name=n) for n in "xyz"])
    assert with_parties(named, ["z", "y", "x"]) == named
    with pytest.raises(StudyError, match="the study's parties are x, y, z, got x, y: give one manifest each"):
        with_parties(named, ["x", "y"])
    with pytest.raises(StudyError, match="at least 3 parties, got 2"):
        simulate(study_of(), {n: manifests[n] for n in "xy"})


@pytest.mark.parametrize(
    ("tables", "error", "words"),
    [
        ({"bounds": {"intensity": 10}}, ImageError, "line 2: i0.npy: standardised values run"),
        ({"bounds": {"voxels_per_party": 5}}, BoundError, "nothing was sent"),
    ],
)
def test_the_first_cause_is_told(manifests, tables, error, words):
    with pytest.raises(error, match=words):
        simulate(study_of(**tables), manifests, timeout=20)


def test_a_process_that_dies_ends_the_study(manifests):
    def kill(who, what):
        import multiprocessing
        import os
        import signal

        if who == "y" and what.startswith("waiting"):
            (victim,) = (p for p in multiprocessing.active_children() if p.name == "voxring y")
            os.kill(victim.pid, signal.SIGKILL)

    with pytest.raises(PeerError, match=r"^y: the process ended before the study did"):
        simulate(study_of(), manifests, timeout=8, notify=kill)
