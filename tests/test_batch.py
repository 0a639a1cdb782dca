"""Manifests and a party's batch."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, nullcontext
from itertools import product
from pathlib import Path

import dask
import distributed
import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import voxring.batch
import voxring.batch.pool
import voxring.images.room
from deadly import Deadly
from looking import Looking, notes_of_a_share
from voxring import DeviceError, ImageError, LocalTotals, Study, StudyError, VoxringError, local_totals, party_totals
from voxring.batch import Journal, Row, image_totals, party_batch, read_manifest
from voxring.batch.cluster import _cluster
from voxring.batch.pool import ATTEMPTS, _work, _Worker, in_processes
from voxring.batch.row import Task, answer, read_ahead


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(5)
    for i in range(4):
        np.save(tmp_path / f"image{i}.npy", rng.integers(-100, 100, (4, 5, 6), np.int16))
        np.save(tmp_path / f"truth{i}.npy", rng.integers(0, 3, (4, 5, 6), np.uint8))
    np.save(tmp_path / "empty.npy", np.zeros((4, 5, 6), np.uint8))
    np.save(tmp_path / "other.npy", np.zeros((4, 5, 7), np.uint8))
    return tmp_path


def manifest(folder, text):
    path = folder / "m.csv"
    path.write_text(text, encoding="utf-8")
    return path


STUDY = Study.of(name="test", classes={"a": 1, "b": 2}, window={"size": 3})


def test_a_party_adds_up_its_images_and_counts_patients(folder):
    path = manifest(
        folder,
        "image,ground_truth,patient\nimage0.npy,truth0.npy,p\nimage1.npy,truth1.npy,p\n\nimage2.npy,truth2.npy,q\n"
        "image3.npy,empty.npy,r\n",
    )
    seen = []
    totals = party_totals(path, STUDY, progress=lambda done, total: seen.append((done, total)))
    expected = LocalTotals()
    for i in range(3):
        expected = expected + local_totals(np.load(folder / f"image{i}.npy"), np.load(folder / f"truth{i}.npy"), STUDY)
    for name in STUDY.classes:
        assert (totals[name].voxels, totals[name].sum) == (expected[name].voxels, expected[name].sum)
        assert (totals[name].total, totals[name].squares) == (expected[name].total, expected[name].squares)
        assert totals[name].patients == 2  # r has no voxel of a class
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_patient_by_patient_each_class_of_a_patient_counts_it_once(folder):
    path = manifest(
        folder, "image,ground_truth,patient\nimage0.npy,truth0.npy,p\nimage3.npy,empty.npy,r\nimage1.npy,truth1.npy,p\n"
    )
    p, r = party_batch(path, STUDY).patients
    assert p + r == party_totals(path, STUDY)
    assert {name: of.patients for name, of in p.classes.items()} == {"a": 1, "b": 1}
    assert not any(of.voxels or of.patients for of in r.classes.values())
    expected = sum(
        (local_totals(np.load(folder / f"image{i}.npy"), np.load(folder / f"truth{i}.npy"), STUDY) for i in range(2)),
        LocalTotals(),
    )
    assert (p["a"].voxels, p["a"].sum, p["a"].squares) == tuple(
        getattr(expected["a"], field) for field in ("voxels", "sum", "squares")
    )


def test_without_patients_every_image_is_one(folder):
    path = manifest(folder, "\ufeffground_truth, image\ntruth0.npy,image0.npy\ntruth1.npy, image1.npy \n")
    assert party_totals(path, STUDY)["a"].patients == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected the header image,ground_truth\[,patient\], got nothing"),
        ("picture,mask\n", "got picture,mask"),
        ("image,ground_truth,age\n", "got image,ground_truth,age"),
        ("image,image,ground_truth\n", "got image,image,ground_truth"),
        ("image,ground_truth\n", "at least one row below the header, got none"),
        ("image,ground_truth\nimage0.npy\n", "line 2: expected 2 cells, got 1"),
        ("image,ground_truth\nimage0.npy,\n", "line 2: ground_truth: expected a path, got an empty cell"),
        ("image,ground_truth\n\nimage9.npy,truth0.npy\n", "line 3: image: no such file: image9.npy"),
        ("image,ground_truth,patient\nimage0.npy,truth0.npy, \n", "line 2: patient: expected a name"),
        (
            "image,ground_truth\nimage0.npy,truth0.npy\n./image0.npy,truth0.npy\n",
            "line 3: the same image and ground truth as in line 2",
        ),
        ("image,ground_truth\nimage0.npy,./image0.npy\n", "line 2: image and ground_truth are one file"),
        ('image,ground_truth\n"image0.npy,truth0.npy\n', "cannot be read as a CSV manifest"),
    ],
)
def test_a_bad_manifest_gets_one_clear_error(folder, text, message):
    path = manifest(folder, text)
    with pytest.raises(StudyError, match=message) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(str(path))
    path.write_bytes("image,ground_truth\nmüller.npy,truth0.npy\n".encode("latin-1"))
    with pytest.raises(StudyError, match="save it as CSV in UTF-8"):
        read_manifest(path)
    with pytest.raises(StudyError, match="no such manifest"):
        read_manifest(folder / "none.csv")


def test_an_image_off_its_ground_truths_grid_is_named(folder):
    path = manifest(folder, "image,ground_truth\nimage0.npy,truth0.npy\nimage1.npy,other.npy\n")
    with pytest.raises(ImageError, match=r"m\.csv: line 3: other\.npy does not lie on the grid of image1\.npy: shape"):
        party_totals(path, STUDY)


def test_a_voxel_beyond_the_bound_names_the_file(folder):
    path = manifest(folder, "image,ground_truth\nimage0.npy,truth0.npy\n")
    study = Study.of(name="test", classes={"a": 1}, bounds={"intensity": 50}, window={"size": 3})
    with pytest.raises(ImageError, match=r"line 2: image0\.npy: standardised values run from"):
        party_totals(path, study)


# Rows that cannot be used.


def bad_rows(folder):
    (folder / "cut.npy").write_bytes((folder / "image1.npy").read_bytes()[:-1])
    return manifest(
        folder,
        "image,ground_truth,patient\nimage0.npy,truth0.npy,p\ncut.npy,truth1.npy,q\nimage2.npy,other.npy,q\n"
        "image3.npy,truth3.npy,r\n",
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_rows_are_all_listed_at_the_end(folder, workers):
    reported = []
    with pytest.raises(ImageError, match=r"m\.csv: 2 of 4 rows cannot be used, and nothing was sent") as caught:
        party_batch(bad_rows(folder), STUDY, workers=workers, report=reported.append)
    listed = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0] for line in listed] == ["  line 3", "  line 4"]
    assert "cut.npy" in listed[0]
    assert "does not lie on the grid" in listed[1]
    assert sorted(row.line for row in reported) == [3, 4]


def test_bad_rows_may_be_left_out_and_are_counted(folder):
    path = bad_rows(folder)
    batch = party_batch(path, STUDY, bad="skip")
    good = manifest(folder, "image,ground_truth,patient\nimage0.npy,truth0.npy,p\nimage3.npy,truth3.npy,r\n")
    assert batch.totals == party_totals(good, STUDY)
    assert batch.account() == "2 images used; 2 skipped, of 1 patient"
    assert [(row.line, row.patient) for row in batch.skipped] == [(3, "q"), (4, "q")]


def test_the_first_bad_row_may_end_the_batch(folder, monkeypatch):
    taken = []
    monkeypatch.setattr(voxring.batch.pool, "answer", lambda *given: taken.append(given[1].line) or answer(*given))
    with pytest.raises(ImageError, match=r"m\.csv: line 3: .*cut\.npy"):
        party_batch(bad_rows(folder), STUDY, bad="stop")
    assert taken == [2, 3]


def test_bad_rows_are_told_by_line_whoever_found_them_first(folder, monkeypatch):
    real = voxring.batch._pool
    monkeypatch.setattr(voxring.batch, "_pool", lambda *given: (one for one in [*real(*given)][::-1]))
    batch = party_batch(bad_rows(folder), STUDY, bad="skip")
    assert [row.line for row in batch.skipped] == [3, 4]


def test_many_bad_rows_are_not_all_listed(folder):
    lines = ["image,ground_truth"]
    for i in range(25):
        (folder / f"bad{i}.npy").write_bytes(b"no")
        lines.append(f"bad{i}.npy,truth0.npy")
    with pytest.raises(ImageError, match="25 of 25 rows") as caught:
        party_batch(manifest(folder, "\n".join(lines)), STUDY)
    listed = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0] for line in listed] == [*(f"  line {i}" for i in range(2, 22)), "  and 5 more"]


def test_a_device_that_does_not_answer_is_no_fault_of_a_row(folder):
    path = manifest(folder, "image,ground_truth\nimage0.npy,truth0.npy\n")
    with pytest.raises(DeviceError):
        party_batch(path, STUDY, device="none", bad="skip")
    task = Task(STUDY, "cpu", None, None, version="0.0.0")
    assert "install one version on both" in str(answer(task, read_manifest(path)[0]))
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        party_batch(path, STUDY, workers=0)


def test_a_file_that_is_gone_is_a_bad_row(folder):
    path = manifest(folder, "image,ground_truth\nimage0.npy,truth0.npy\nimage1.npy,truth1.npy\n")
    rows = read_manifest(path)
    (folder / "image0.npy").unlink()
    read_ahead(rows[0])
    task = Task(STUDY, "cpu", None, b"k" * 32)
    assert "found nothing there" in str(answer(task, rows[0]))
    with pytest.MonkeyPatch.context() as patch:  # in the instant after its header was read
        patch.setattr(voxring.batch.row, "identify", lambda path: os.stat(folder / "image0.npy"))
        assert "No such file" in str(answer(task, rows[1]))


# What is read.


def test_without_a_class_the_header_is_all_that_is_read(folder):
    image = np.ones((40, 30, 20), np.int16)
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / "i.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), np.eye(4)), folder / "t.nii.gz")
    raw = (folder / "i.nii.gz").read_bytes()
    (folder / "i.nii.gz").write_bytes(raw[:-12] + b"x" * 12)
    path = manifest(folder, "image,ground_truth\ni.nii.gz,t.nii.gz\n")
    totals = party_totals(path, STUDY)
    assert [totals[name].voxels for name in STUDY.classes] == [0, 0]
    assert list(totals.classes) == list(STUDY.classes)
    nibabel.save(nibabel.Nifti1Image(np.ones(image.shape, np.uint8), np.eye(4)), folder / "t.nii.gz")
    with pytest.raises(ImageError, match="truncated or corrupt"):
        party_totals(path, STUDY)


@pytest.mark.parametrize(("plane", "seen"), [(3, False), (17, True)])
def test_a_checksum_that_does_not_fit_is_seen_where_little_is_left_to_unpack(folder, plane, seen):
    truth = np.zeros((64, 64, 20), np.uint8)
    truth[2, 2, plane] = 1
    image = np.random.default_rng(2).integers(-100, 100, truth.shape, np.int16)
    for name, array in (("i", image), ("t", truth)):
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / f"{name}.nii.gz")
    raw = bytearray((folder / "i.nii.gz").read_bytes())
    raw[-8] ^= 1  # the first byte of the checksum
    (folder / "i.nii.gz").write_bytes(raw)
    path = manifest(folder, "image,ground_truth\ni.nii.gz,t.nii.gz\n")
    if seen:
        with pytest.raises(ImageError, match="truncated or corrupt"):
            party_totals(path, STUDY)
    else:
        whole = local_totals(image.transpose(), truth.transpose(), STUDY)
        assert party_totals(path, STUDY)["a"].sum == whole["a"].sum


BORDERS = ["reflect", "mirror", "nearest", "constant", "clip"]
METHODS = [
    {},
    {"method": "rescale", "range": [-50, 50]},
    {"method": "zscore", "foreground": "all"},
    {"method": "percentile", "percentiles": [5, 95], "foreground": "all"},
]


@st.composite
def archives(draw):
    """A few rows of one kind, most with labels in some planes alone, as compressed files, and a study."""
    shape = draw(st.integers(1, 9)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        truth = np.zeros(shape, np.uint8)
        for _ in range(draw(st.integers(0, 2))):
            truth[tuple(int(rng.integers(0, n)) for n in shape)] = rng.integers(1, 4)
        rows.append((rng.integers(-100, 100, shape, np.int16), truth))
    rows[0][0].flat[:2] = -100, 99  # more than one value, should all of it count
    window = [draw(st.integers(1, 12)), 1, 3]
    study = Study.of(
        name="test",
        classes={"a": 1, "b": 2},
        window={"size": window, "border": draw(st.sampled_from(BORDERS))},
        standardise=draw(st.sampled_from(METHODS)),
    )
    return study, rows, draw(st.permutations(range(len(rows)))), draw(st.integers(0, len(rows)))


@settings(max_examples=150, deadline=None)
@given(archives())
def test_parts_of_images_give_what_whole_ones_do_in_any_order(archive):
    """Over all borders and windows, also larger than the image; some of the rows from a journal."""
    study, rows, order, known = archive
    expected = LocalTotals()
    kept = []
    for image, truth in rows:
        try:
            expected = expected + local_totals(image, truth, study)
        except ImageError:  # one value throughout: no z-score
            assert study.standardise.method in ("zscore", "percentile")
            if (truth == 1).any() or (truth == 2).any():
                return
        kept.append((image, truth))
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(voxring.images.room, "_SMALL", 0)  # one row after the other in the same memory
        folder = Path(name)
        for i, (image, truth) in enumerate(kept):
            for kind, array in (("i", image), ("t", truth)):
                nibabel.save(nibabel.Nifti1Image(np.transpose(array), np.eye(4)), folder / f"{kind}{i}.nii.gz")
        first = manifest(folder, "image,ground_truth\n" + "".join(f"i{i}.nii.gz,t{i}.nii.gz\n" for i in order[:known]))
        with Journal(folder, study, "here") as journal:
            if known:
                party_batch(first, study, journal=journal)
            every = manifest(folder, "image,ground_truth\n" + "".join(f"i{i}.nii.gz,t{i}.nii.gz\n" for i in order))
            batch = party_batch(every, study, journal=journal)
        assert batch.known == known
        for of in study.classes:
            mine, whole = batch.totals[of], expected[of]
            assert (mine.voxels, mine.sum) == (whole.voxels, whole.sum)
            assert (mine.total, mine.squares, mine.patients) == (whole.total, whole.squares, whole.patients)


# Workers.


def children():
    return [child for child in multiprocessing.active_children() if child.name == "voxring worker"]


def rows_of(folder, count=8):
    lines = "".join(f"image{i % 4}.npy,truth{j % 4}.npy\n" for i in range(4) for j in range(4))
    return read_manifest(manifest(folder, "image,ground_truth\n" + lines))[:count]


@pytest.mark.parametrize("border", ["reflect", "mirror", "clip"])
@pytest.mark.parametrize("method", ["none", "zscore", "percentile", "nyul"])
def test_what_a_scaling_of_all_voxels_maps_gives_the_totals_of_the_whole(tmp_path, method, border):
    options = {"none": {}, "zscore": {}, "percentile": {"percentiles": [5, 95]}}.get(method)
    options = options if options is not None else {"percentiles": [5, 50, 95], "landmarks": [0, 1, 5]}
    rng = np.random.default_rng(2)
    for dtype, window, planes in product([np.int16, np.float32], [3, (4, 1, 3), (9, 3, 3)], [(0,), (11,), (4, 6)]):
        study = Study.of(
            name="t",
            classes={"a": 1, "b": 2},
            window={"size": window, "border": border},
            standardise={"method": method, **options},
        )
        image = rng.integers(-90, 90, (12, 7, 8)).astype(dtype)
        truth = np.zeros(image.shape, np.uint8)
        for plane in planes:
            truth[plane, 2:5, 3] = (1, 2, 1)
        np.save(tmp_path / "i.npy", image)
        np.save(tmp_path / "t.npy", truth)
        row = Row(1, tmp_path / "i.npy", tmp_path / "t.npy", "")
        assert image_totals(row, study) == local_totals(image, truth, study)


def deadly(row, folder, times):
    return Deadly(row.line, row.image, row.ground_truth, row.patient, folder, times, os.getpid())


def looking(row, folder):
    return Looking(row.line, row.image, row.ground_truth, row.patient, folder / "notes", os.getpid())


def one_by_one(rows):
    return {number: image_totals(row, STUDY) for number, row in enumerate(rows)}


def test_a_worker_that_is_killed_changes_nothing(folder):
    """Real SIGKILLs: of a worker at work, of one that waits, and by a row itself. Each worker keeps to its share."""
    rows = rows_of(folder)
    rows = (deadly(rows[0], folder, 1), *(looking(row, folder) for row in rows[1:]))
    done = {}
    for number, came in in_processes(Task(STUDY, "cpu", None, None), rows, range(len(rows)), 2):
        assert number not in done
        done[number] = came.totals
        if len(done) in (2, 4):
            os.kill(children()[0].pid, signal.SIGKILL)
    assert done == one_by_one(rows)
    assert not children()
    assert set((folder / "notes").read_text().splitlines()) == notes_of_a_share(2)


def test_a_row_that_kills_its_workers_is_bad(folder):
    rows = rows_of(folder, 3)
    rows = (rows[0], deadly(rows[1], folder, 9), rows[2])
    done = dict(in_processes(Task(STUDY, "cpu", None, None), rows, range(3), 2))
    assert "3 workers were killed while they computed it" in str(done[1])
    assert len(list(folder.glob("killed-*"))) == ATTEMPTS
    expected = one_by_one(rows)
    assert {number: done[number].totals for number in (0, 2)} == {number: expected[number] for number in (0, 2)}


def test_workers_that_cannot_start_are_told(folder, monkeypatch):
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", b"/bin/false")
    with pytest.raises(VoxringError, match="3 workers ended before they had begun"):
        list(in_processes(Task(STUDY, "cpu", None, None), rows_of(folder), range(8), 2))
    assert not children()


def test_ctrl_c_is_left_to_the_process_that_started_the_workers(folder):
    rows = rows_of(folder)
    batch = in_processes(Task(STUDY, "cpu", None, None), rows, range(len(rows)), 2)
    next(batch)
    pids = {child.pid for child in children()}
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    left = [{child.pid for child in children()} for _ in batch]
    assert len(left) == len(rows) - 1
    assert left[:-2] == [pids] * (len(rows) - 3)
    assert len(pids) == 2


@pytest.mark.parametrize(("workers", "threads", "share"), [(2, None, "3"), (4, None, "1"), (8, None, "1"), (2, 5, "5")])
def test_workers_have_their_share_of_the_processors(folder, monkeypatch, workers, threads, share):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(6))
    monkeypatch.setenv("NUMBA_NUM_THREADS", "99")
    started = []

    def start(worker):
        started.append(worker.threads)
        raise InterruptedError

    monkeypatch.setattr(_Worker, "start", start)
    with pytest.raises(InterruptedError):
        list(in_processes(Task(STUDY, "cpu", threads, None), rows_of(folder), range(8), workers))
    here, there = multiprocessing.Pipe()
    here.close()
    _work(there, Task(STUDY, "cpu", threads, None), started[0])
    assert os.environ["NUMBA_NUM_THREADS"] == share


CLUSTER = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import voxring.batch.cluster
from deadly import Deadly
from looking import Looking
from voxring import Study, VoxringError
from voxring.batch import party_batch, read_manifest
from voxring.batch.cluster import in_cluster
from voxring.batch.row import Task

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    study = Study.of(name="test", classes={"a": 1, "b": 2}, window={"size": 3})
    path = folder / "m.csv"
    from distributed import LocalCluster, Security
    rows = read_manifest(path)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        pids = [worker.pid for worker in cluster.workers.values()]
        progress = lambda count, total: count == 3 and os.kill(pids[0], signal.SIGKILL)
        one = party_batch(path, study, scheduler=cluster.scheduler_address, progress=progress)
    came = {}
    if sys.argv[3] == "deadly":
        row = rows[0]
        deadly = Deadly(row.line, row.image, row.ground_truth, row.patient, folder, 9, os.getpid())
        looking = [
            Looking(row.line, row.image, row.ground_truth, row.patient, folder / "notes", os.getpid())
            for row in rows[1:4]
        ]
        came = dict(in_cluster(Task(study, "cpu", None, None), (deadly, *looking), range(4), "local", 2))
    if sys.argv[3] == "gone":
        of = voxring.batch.cluster
        of._WAIT, of._LOOK, of._FETCH = 1, 0.2, 1
        with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
            tasks = in_cluster(Task(study, "cpu", None, None), rows[:8], range(8), cluster.scheduler_address, 1)
            next(tasks)
            cluster.scale(0)
            try:
                list(tasks)
            except VoxringError as error:
                came = {0: error}
    bad = [str(one) for one in came.values() if isinstance(one, VoxringError)]
    print(json.dumps([one.images, [one.totals[name].sum for name in "ab"], bad, len(came)]))
"""


def cluster(folder, what):
    rows_of(folder)
    script = folder / "cluster.py"
    script.write_text(CLUSTER)
    command = [sys.executable, script, folder, Path(__file__).parent, what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    images, sums, bad, count = json.loads(done.stdout.splitlines()[-1])
    expected = party_totals(folder / "m.csv", STUDY)
    assert images == 16
    assert sums == [expected["a"].sum, expected["b"].sum]
    return bad, count


def test_a_cluster_gives_the_same_and_stands_a_kill_and_its_end_is_told(folder):
    (told,), count = cluster(folder, "gone")
    assert "has had no worker for 1 s: see why its workers end" in told
    assert count == 1


@pytest.mark.soak
def test_a_row_that_kills_the_workers_of_a_cluster_is_bad_alone(folder):
    bad, count = cluster(folder, "deadly")
    assert count == 4
    assert len(bad) == 1
    assert "3 workers were lost while they computed it alone" in bad[0]
    assert set((folder / "notes").read_text().splitlines()) == notes_of_a_share(2)


@pytest.mark.parametrize(("threads", "share"), [(None, "3"), (5, "5")])
def test_workers_of_a_local_cluster_are_given_their_share_by_their_nannies(monkeypatch, threads, share):
    made = []

    def local_cluster(n_workers, threads_per_worker, **_):
        given = dask.config.get("distributed.nanny.pre-spawn-environ")["NUMBA_NUM_THREADS"]
        made.append((n_workers, threads_per_worker, given))
        return nullcontext()

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(6))
    monkeypatch.setattr(distributed, "LocalCluster", local_cluster)
    with ExitStack() as stack:
        _cluster("local", 2, Task(STUDY, "cpu", threads, None), stack)
    assert made == [(2, 1, share)]


def test_a_cluster_that_is_not_there_is_told(folder):
    rows_of(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "dask", None)
        with pytest.raises(DeviceError, match=r"install voxring\[cluster\]"):
            party_batch(folder / "m.csv", STUDY, scheduler="local")
