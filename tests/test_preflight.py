"""`voxring preflight` finds what would stop a party, names it, and names no file where a log may read."""

import gzip
import json
import os
import re
import socket
import time
import tracemalloc
from math import prod

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner

import voxring.cli.preflight as module
from test_classify import trained
from voxring.batch import Row, image_totals
from voxring.cli import voxring
from voxring.cli.preflight import MIB, free_memory
from voxring.net import PrivateKey
from voxring.session import Account, Ledger
from voxring.study import Study, load_study

NAMES = ("north", "centre", "south")


@pytest.fixture
def place(tmp_path):
    """A party with two images of two patients, in a study with keys whose other parties are not there."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    keys = {name: PrivateKey.new() for name in (*NAMES, "researcher")}
    tables = "".join(
        f'[[party]]\nname = "{name}"\naddress = "tcp://127.0.0.1:{at}"\nkey = "{keys[name].public}"\n'
        for name, at in zip(NAMES, (port, 1, 2), strict=True)
    )
    (tmp_path / "study.toml").write_text(
        'name = "t"\nclasses = { lesion = 1, liver = 2 }\n[window]\nsize = 3\n[privacy]\nmin_voxels = 2\n'
        f'{tables}[researcher]\nkey = "{keys["researcher"].public}"\n'
    )
    keys["north"].write(tmp_path / "north.pem")
    keys["south"].write(tmp_path / "south.pem")
    for patient in ("meier", "huber"):
        np.save(tmp_path / f"{patient}-ct.npy", np.zeros((4, 8, 8), np.int16))
        np.save(tmp_path / f"{patient}-gt.npy", np.full((4, 8, 8), 1 + (patient == "huber"), np.uint8))
    rows = "".join(f"{patient}-ct.npy,{patient}-gt.npy,{patient}\n" for patient in ("meier", "huber"))
    (tmp_path / "m.csv").write_text(f"image,ground_truth,patient\n{rows}")
    return tmp_path, port


def look(place, *more, key="north.pem", study="study.toml", **changed):
    """Run the command as a log would get it; return its exit code, its findings by check, and all that it said."""
    folder, _ = place
    options = {"--name": "north", "--manifest": folder / "m.csv", "--state": folder / "state", "--workers": 1}
    options |= {"--key": folder / key} if key else {}
    options |= {f"--{name}": value for name, value in changed.items()}
    flat = [str(one) for pair in options.items() for one in pair]
    done = CliRunner().invoke(
        voxring, ["preflight", str(folder / study), *flat, *more, "--json"], standalone_mode=False
    )
    if done.exception is not None:
        raise done.exception
    found = {}
    for line in done.stdout.splitlines():
        one = json.loads(line)
        found.setdefault(one["check"], []).append((one["state"], one["words"]))
    return done.return_value, found, done.output


def states(found):
    return {check: [state for state, _ in of] for check, of in found.items()}


def rewrite(place, old, new):
    path = place[0] / "study.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_party_that_is_ready(place):
    folder, _ = place
    study = load_study(folder / "study.toml")
    Account(Ledger(folder / "state", "north"), study).approve(study.digest, how="test")
    code, found, said = look(place)
    assert code == 0
    clock = found.pop("clock")
    assert clock[0][0] in ("ok", "note")
    assert states(found) == {
        "key": ["ok"],
        "network": ["ok", "note"],
        "disk": ["ok"],
        "approval": ["ok"],
        "device": ["ok"],
        "manifest": ["ok"],
        "images": ["ok"],
        "classes": ["ok"],
        "memory": ["ok"],
    }
    assert "centre: the machine answers, nothing listens there; south: the machine" in found["network"][1][1]
    assert "a ledger of 2 entries" in found["disk"][0][1]
    assert not any(word in said for word in ("meier", "huber", "npy", "2 rows", "m.csv"))


def test_names_and_counts_are_for_the_terminal(place):
    folder, _ = place
    np.save(folder / "meier-gt.npy", np.zeros((4, 8, 7), np.uint8))
    code, found, said = look(place)
    assert code == 4
    assert states(found)["images"] == ["wrong"]
    assert not any(word in said for word in ("meier", "huber", "line 2", " in 1"))
    _, found, _ = look(place, "--names")
    assert "1 of 2 rows:\n  line 2: meier-gt.npy does not lie on the grid of meier-ct.npy" in found["images"][0][1]
    assert found["classes"] == [("note", found["classes"][0][1])]
    assert found["classes"][0][1].endswith("of 1 images: lesion in 0, liver in 1")


def test_an_unapproved_study_is_a_note_with_the_command(place):
    code, found, _ = look(place)
    assert (code, found["approval"][0][0]) == (0, "note")
    assert re.search(r"voxring party approve \S+study.toml --name north --state \S+state$", found["approval"][0][1])


@pytest.mark.parametrize(
    ("key", "mode", "words"),
    [
        ("north.pem", 0o644, "chmod 600"),
        ("south.pem", 0o600, "expected the private key of north"),
        ("nothing.pem", None, "cannot be read as a private key"),
        (None, None, "give this member's private key with --key"),
    ],
)
def test_a_key_that_does_not_serve(place, key, mode, words):
    if mode:
        (place[0] / key).chmod(mode)
    code, found, _ = look(place, key=key)
    assert (code, found["key"][0][0]) == (3, "wrong")
    assert words in found["key"][0][1]


def test_a_study_without_keys_needs_insecure(place):
    folder, _ = place
    (folder / "study.toml").write_text(
        re.sub(r'key = ".*"\n|\[researcher\]\n', "", (folder / "study.toml").read_text())
    )
    code, found, _ = look(place, key=None)
    assert (code, found["key"][0][0]) == (3, "wrong")
    code, found, _ = look(place, "--insecure", key=None)
    assert (code, found["key"][0][0]) == (0, "note")


def test_a_port_in_use_and_an_address_of_another_machine(place):
    with socket.create_server(("127.0.0.1", place[1])):
        code, found, _ = look(place)
        assert (code, states(found)["network"]) == (5, ["wrong"])
        assert f"cannot listen at tcp://127.0.0.1:{place[1]}: Address already in use" in found["network"][0][1]
    code, found, _ = look(place, address="tcp://192.0.2.1:7001")
    assert (code, states(found)["network"]) == (5, ["wrong"])
    assert "--address tcp://0.0.0.0:PORT" in found["network"][0][1]
    assert look(place, address="tcp://127.0.0.1:0")[0] == 0


def test_a_relay_is_reached_or_not(place):
    with socket.create_server(("127.0.0.1", 0)) as relay:
        where = f"tcp://127.0.0.1:{relay.getsockname()[1]}"
        assert states(look(place, relay=where)[1])["network"] == ["ok"]
    code, found, _ = look(place, relay=where)
    assert (code, states(found)["network"]) == (5, ["wrong"])
    assert "the machine answers, nothing listens there" in found["network"][0][1]
    assert look(place, relay=where, address=where)[0] == 3


def test_parties_that_listen_are_reached(place):
    with socket.create_server(("127.0.0.1", 0)) as peer:
        rewrite(place, "tcp://127.0.0.1:1", f"tcp://127.0.0.1:{peer.getsockname()[1]}")
        assert "centre" not in look(place)[1]["network"][1][1]
        rewrite(place, "tcp://127.0.0.1:2", f"tcp://localhost:{peer.getsockname()[1]}")
        assert states(look(place)[1])["network"] == ["ok", "ok"]


def test_a_state_folder_that_cannot_be_written_or_is_full(place, monkeypatch):
    folder, _ = place
    (folder / "file").write_text("")
    code, found, _ = look(place, state=folder / "file" / "state")
    assert (code, found["disk"][0][0]) == (3, "wrong")
    monkeypatch.setattr(module, "LEAST_FREE", 1 << 62)
    code, found, _ = look(place)
    assert (code, found["disk"][0][0]) == (3, "wrong")
    assert "make room" in found["disk"][0][1]


def test_a_clock_behind_the_ledger_is_wrong(place, monkeypatch):
    folder, _ = place
    study = load_study(folder / "study.toml")
    Account(Ledger(folder / "state", "north"), study).approve(study.digest, how="test")
    earlier = time.time() - 60
    monkeypatch.setattr(module.time, "time", lambda: earlier)
    monkeypatch.setattr(module, "_released", lambda: 0.0)
    code, found, _ = look(place)
    assert (code, found["clock"][0][0]) == (3, "wrong")


@pytest.mark.parametrize(("answer", "state"), [(True, "ok"), (False, "note"), (None, "note")])
def test_a_clock_that_is_synchronised_or_not(place, monkeypatch, answer, state):
    monkeypatch.setattr(module, "_synchronised", lambda: answer)
    assert states(look(place)[1])["clock"] == [state]


def test_a_clock_before_the_release_is_wrong(place, monkeypatch):
    monkeypatch.setattr(module.time, "time", lambda: 0.0)
    assert states(look(place)[1])["clock"] == ["wrong"]


def test_damage_that_still_unpacks_is_found_when_images_are_read_whole(place):
    folder, _ = place
    content = np.zeros((40, 8, 8), np.int16).tobytes()
    header = b"NRRD0004\ntype: int16\ndimension: 3\nsizes: 8 8 40\nendian: little\nencoding: gzip\n\n"
    packed = bytearray(gzip.compress(content, 0))  # stored as it is
    packed[100] = 1
    (folder / "ct.nrrd").write_bytes(header + packed)
    truth = np.zeros((40, 8, 8), np.uint8)
    truth[2, 2, 2] = 1
    np.save(folder / "gt.npy", truth)
    (folder / "m.csv").write_text("image,ground_truth\nct.nrrd,gt.npy\n")
    assert states(look(place)[1])["images"] == ["ok"]
    code, found, _ = look(place, "--whole", "--names")
    assert (code, found["images"][0][0]) == (4, "wrong")
    assert "ct.nrrd: the compressed voxels are truncated or corrupt (CRC" in found["images"][0][1]
    (folder / "m.csv").write_text("image,ground_truth\nmeier-ct.npy,meier-gt.npy\n")
    assert states(look(place, "--whole")[1])["images"] == ["ok"]


def test_a_model_that_the_study_evaluates_is_there_or_not(place):
    model = trained()
    rewrite(place, "lesion = 1, liver = 2", "fat = 1, bone = 2")
    rewrite(place, "[window]", f'[evaluate]\nmodel = "model.json"\ndigest = "{model.digest}"\n[window]')
    code, found, _ = look(place)
    assert (code, states(found)["model"], states(found)["images"]) == (3, ["wrong"], ["ok"])
    model.save(place[0] / "model.json")
    assert states(look(place)[1])["model"] == ["ok"]


def test_memory_is_counted_for_each_worker(place, monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda: 2 * module.WORKER_BYTES + MIB)
    assert states(look(place, workers=2)[1])["memory"] == ["ok"]
    code, found, _ = look(place, workers=3)
    assert (code, found["memory"][0][0]) == (4, "wrong")
    assert "use --workers 2" in found["memory"][0][1]
    monkeypatch.setattr(module, "free_memory", lambda: module.WORKER_BYTES + 2 * 4 * 8 * 8 * 2 - 1)
    assert states(look(place)[1])["memory"] == ["wrong"]  # one byte less than two volumes
    monkeypatch.setattr(module, "free_memory", lambda: None)
    assert states(look(place)[1])["memory"] == ["note"]


FEATURES = """
standardise = { method = "rescale", range = [-100.0, 100.0], fraction_bits = 8 }
feature = [{ kind = "mean", window = 3 }, { kind = "gradient" }]
statistics = { gram = true }
[window]"""


def test_memory_is_counted_for_maps_of_features(place, monkeypatch):
    """Of 256 voxels: image and ground truth, x in 64 bits twice over, numbers of classes; two maps, these and 1 at
    labelled places, and what lies beside them."""
    rewrite(place, "[window]", FEATURES)
    need = module.WORKER_BYTES + 256 * (2 * 2 + 8 * 2 + 2 + 8 * 9)
    for free, state in ((need, "ok"), (need - 1, "wrong")):
        monkeypatch.setattr(module, "free_memory", lambda free=free: free)
        assert states(look(place)[1])["memory"] == [state]


MAPS = {"feature": [{"kind": "mean", "window": 3}, {"kind": "gradient"}], "statistics": {"gram": True}}
PERCENTILES = {"method": "percentile", "percentiles": [1, 99]}


@pytest.mark.parametrize(
    ("dtype", "standardise", "more"),
    [
        ("float32", {"method": "none"}, {}),
        ("float32", {"method": "zscore"}, {}),
        ("float32", PERCENTILES, {}),
        ("int32", PERCENTILES, {}),
        ("int16", {"method": "rescale", "range": [50, 150]}, MAPS),
    ],
)
def test_a_row_takes_no_more_memory_than_is_counted(tmp_path, dtype, standardise, more):
    """Of floats and integers of 32 bits no more than twice what is stored, but for pieces of one size."""
    rng = np.random.default_rng(0)
    study = Study.of(name="m", classes={"a": 1}, window={"size": 3}, standardise=standardise, **more)
    shape, row = (48, 96, 96) if more else (48, 160, 160), Row(1, tmp_path / "i.nii.gz", tmp_path / "t.nii.gz", "")
    nibabel.save(nibabel.Nifti1Image(rng.normal(100, 30, shape).astype(dtype).T, np.eye(4)), row.image)
    nibabel.save(nibabel.Nifti1Image(np.ones(shape, np.uint8).T, np.eye(4)), row.ground_truth)
    image_totals(row, study, threads=1)  # what is loaded and compiled is no volume
    counted = module._look(row, study).memory
    tracemalloc.start()
    try:
        image_totals(row, study, threads=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= counted
    if not more:
        assert peak <= 2 * 4 * prod(shape) + module._AT_ONCE * module._PIECE


def test_memory_is_counted_for_maps_of_the_model(place, monkeypatch):
    model = trained()
    model.save(place[0] / "model.json")
    rewrite(place, "lesion = 1, liver = 2", "fat = 1, bone = 2")
    rewrite(place, "[window]", f'[evaluate]\nmodel = "model.json"\ndigest = "{model.digest}"\n[window]')
    need = module.WORKER_BYTES + 256 * (2 * 2 + 8 + 2 + 8 * (2 * len(model.study.feature) + 5))
    for free, state in ((need, "ok"), (need - 1, "wrong")):
        monkeypatch.setattr(module, "free_memory", lambda free=free: free)
        assert states(look(place)[1])["memory"] == [state]


def test_a_window_with_other_axes_than_an_image_is_a_bad_row(place):
    rewrite(place, "size = 3", "size = [3, 3]")
    code, found, _ = look(place, "--names")
    assert (code, found["images"][0][0]) == (4, "wrong")
    assert "2 of 2 rows" in found["images"][0][1]


def test_free_memory_is_the_less_of_system_and_container(tmp_path):
    assert free_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   8 kB\n")
    assert free_memory(tmp_path) == 8192
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    for limit, free in (("max", 8192), ("5000", 4000), ("500", 0), ("90000", 8192)):
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text("1000\n")
        assert free_memory(tmp_path) == free


def test_a_manifest_that_cannot_be_used(place):
    (place[0] / "m.csv").write_text("image,ground_truth\nmeier-none.npy,meier-gt.npy\n")
    code, found, said = look(place)
    assert (code, states(found)["manifest"]) == (3, ["wrong"])
    assert "images" not in found
    assert "meier" not in said
    assert "meier-none.npy" in look(place, "--names")[2]


def test_a_device_that_does_not_answer_is_wrong(place, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, found, _ = look(place, device="cuda")
    assert (code, found["device"][0][0]) == (4, "wrong")


def test_in_words_it_says_how_many_checks_are_wrong(place):
    folder, _ = place
    arguments = ["preflight", folder / "study.toml", "--name", "north", "--manifest", folder / "m.csv"]
    arguments += ["--state", folder / "state"]
    done = CliRunner().invoke(voxring, list(map(str, arguments)), standalone_mode=False)
    assert done.return_value == 3
    assert done.stdout.startswith("WRONG key       north: the study has keys")
    assert "1 check is wrong: not ready for study " in done.stdout
    done = CliRunner().invoke(
        voxring, [*map(str, arguments), "--key", str(folder / "north.pem")], standalone_mode=False
    )
    assert "nothing is wrong: ready for study" in done.stdout
    assert set(os.listdir(folder / "state")) <= {"coins"}  # neither ledger nor journal was begun
