"""The journal of a batch: what was done is not done again, what changed is, and a kill at any moment costs one row."""

import bz2
import gzip
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import zlib
from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
import pytest

import voxring.batch.contents
import voxring.batch.journal
import voxring.batch.pool
import voxring.batch.row
import voxring.images.payload
from voxring import ImageError, Study, StudyError, VoxringError
from voxring.batch import Journal, image_totals, party_batch, read_manifest
from voxring.batch.contents import digest, record, watching
from voxring.batch.journal import totals_digest
from voxring.images import Source, identify, open_image

STUDY = Study.of(name="test", classes={"a": 1, "b": 2}, window={"size": 3})
KILLS = int(os.environ.get("VOXRING_SOAK", "6"))


def write(path, image, truth, affine=None):
    for name, array in (("image", image), ("truth", truth)):
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), f"{path}{name}.nii.gz")


@pytest.fixture
def folder(tmp_path):
    """Four rows: plain and compressed files, one with its voxels in another file, one without a class."""
    rng = np.random.default_rng(5)
    data = tmp_path / "data"
    data.mkdir()
    for i in range(2):
        np.save(data / f"{i}image.npy", rng.integers(-100, 100, (6, 5, 4), np.int16))
        np.save(data / f"{i}truth.npy", rng.integers(0, 3, (6, 5, 4), np.uint8))
    write(data / "2", rng.integers(-100, 100, (4, 5, 6), np.int16), np.zeros((4, 5, 6), np.uint8))
    header = "NDims = 3\nDimSize = 4 5 6\nElementType = MET_SHORT\nElementDataFile = 3image.raw\n"
    (data / "3image.mhd").write_text(header)
    (data / "3image.raw").write_bytes(rng.integers(-100, 100, (6, 5, 4), np.int16).tobytes())
    truth = np.zeros((6, 5, 4), np.uint8)
    truth[1, 2, 2] = 1
    np.save(data / "3truth.npy", truth)
    (data / "m.csv").write_text(
        "image,ground_truth,patient\n0image.npy,0truth.npy,Smith\n1image.npy,1truth.npy,Smith\n"
        "2image.nii.gz,2truth.nii.gz,Jones\n3image.mhd,3truth.npy,Doe\n"
    )
    return tmp_path


def run(folder, study=STUDY, **options):
    """A batch with a journal, and how many rows were read for it."""
    with Journal(folder / "state", study, "here") as journal:
        batch = party_batch(folder / "data" / "m.csv", study, journal=journal, **options)
    return batch, batch.images - batch.known


def path_of(folder, study=STUDY):
    return Journal(folder / "state", study, "here").path


@pytest.fixture(params=["at a glance", "by content"])
def settled(request, monkeypatch):
    """Files that were just made are known by their content; here both ways, on the same files."""
    monkeypatch.setattr(voxring.batch.contents, "SETTLED", -(10**18) if request.param == "at a glance" else 10**18)
    return request.param


def test_a_second_run_reads_nothing(folder, settled, monkeypatch):
    first, read = run(folder)
    assert read == 4
    assert first.totals == party_batch(folder / "data" / "m.csv", STUDY).totals
    monkeypatch.setattr(voxring.batch.pool, "answer", None)
    if settled == "at a glance":
        monkeypatch.setattr(voxring.batch.contents, "digest", None)
    second, read = run(folder)
    assert read == 0
    assert second.totals == first.totals
    assert second.patients == first.patients


@pytest.mark.parametrize("name", ["0image.npy", "1truth.npy", "2truth.nii.gz", "3image.mhd", "3image.raw"])
def test_a_changed_file_is_read_again(folder, settled, name):
    """Also where its size and the time of its change are as before."""
    run(folder)
    path = folder / "data" / name
    before = path.stat()
    content = bytearray(path.read_bytes())
    if name == "3image.mhd":
        content = (
            content.replace(b"NDims", b"Ndims").replace(b"Ndims", b"NDims").replace(b"DimSize = 4 5", b"DimSize = 5 4")
        )
        np.save(folder / "data" / "3truth.npy", np.ones((6, 4, 5), np.uint8))
    elif name == "2truth.nii.gz":
        raw = bytearray(gzip.decompress(content))
        raw[-7] = 1
        content = gzip.compress(raw)
    elif name == "3image.raw":
        content[2 * (20 + 2 * 4 + 2)] ^= 1
    else:
        content[-1 if "truth" in name else -2 * 4 * 20 - 1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    again, read = run(folder)
    assert read == 1
    assert again.totals == party_batch(folder / "data" / "m.csv", STUDY).totals


def test_a_ground_truth_in_two_files_is_read_again_when_the_second_changes(folder, settled):
    data = folder / "data"
    header = "NDims = 3\nDimSize = 4 5 6\nElementType = MET_UCHAR\nElementDataFile = 3truth.raw\n"
    (data / "3truth.mhd").write_text(header)
    content = bytearray(np.load(data / "3truth.npy").tobytes())
    (data / "3truth.raw").write_bytes(content)
    (data / "m.csv").write_text((data / "m.csv").read_text().replace("3truth.npy", "3truth.mhd"))
    run(folder)
    content[0] = 1
    (data / "3truth.raw").write_bytes(content)
    again, read = run(folder)
    assert read == 1
    assert again.totals == party_batch(data / "m.csv", STUDY).totals


def test_a_file_whose_time_was_set_back_has_not_been_at_rest_for_that(tmp_path):
    path = tmp_path / "image"
    path.touch()
    os.utime(path, ns=(0, 0))
    (noted,) = record(path, [Source.whole(path, identify(path))], b"k" * 32)
    assert not noted.settled


def test_what_no_window_reaches_may_change(folder, settled):
    """Plane 5 of the fourth image: the lesion is in plane 1, its windows end in plane 2."""
    first, _ = run(folder)
    path = folder / "data" / "3image.raw"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    again, read = run(folder)
    assert read == 0
    assert again.totals == first.totals == party_batch(folder / "data" / "m.csv", STUDY).totals


def test_a_file_that_looks_unchanged_may_not_be_if_it_was_just_written(folder, monkeypatch):
    """Written to twice within a tick of the clock: the same inode, size and times."""
    for module in (voxring.batch.contents, voxring.batch.journal, voxring.images, voxring.images.payload):
        monkeypatch.setattr(module, "identify", lambda path: (0, os.stat(path).st_size, 1, 1))
    monkeypatch.setattr(voxring.batch.row, "_check_unchanged", lambda sources: None)
    monkeypatch.setattr(voxring.batch.contents, "SETTLED", 10**19)
    run(folder)
    path = folder / "data" / "3image.raw"
    content = bytearray(path.read_bytes())
    content[2 * (20 + 2 * 4 + 2)] ^= 1
    path.write_bytes(content)
    again, read = run(folder)
    assert read == 1
    assert again.totals == party_batch(folder / "data" / "m.csv", STUDY).totals


@pytest.mark.parametrize("change", ["touch", "copy", "rename", "move all"])
def test_the_same_content_elsewhere_is_known(folder, change):
    first, _ = run(folder)
    data = folder / "data"
    if change == "touch":
        for path in data.iterdir():
            path.touch()
    elif change == "copy":
        shutil.copytree(data, folder / "copy")
        shutil.rmtree(data)
        (folder / "copy").rename(data)
    elif change == "rename":
        (data / "0image.npy").rename(data / "new.npy")
        (data / "m.csv").write_text((data / "m.csv").read_text().replace("0image", "new"))
    else:
        rows = (data / "m.csv").read_text().splitlines()
        (data / "m.csv").write_text("\n".join([rows[0], *reversed(rows[1:])]))
    again, read = run(folder)
    assert read == 0
    assert again.totals == first.totals


def test_a_torn_line_costs_its_row_alone(folder):
    first, _ = run(folder)
    path = path_of(folder)
    whole = path.read_bytes()
    last = len(whole[:-1].rpartition(b"\n")[0]) + 1
    for end in (*range(last, len(whole), 43), len(whole) - 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        again, read = run(folder)
        assert read == (0 if end == len(whole) - 1 else 1)  # all but the end of the line is all of it
        assert again.totals == first.totals
        assert run(folder)[1] == 0


def test_a_damaged_line_costs_its_row_alone(folder):
    first, _ = run(folder)
    path = path_of(folder)
    whole = path.read_bytes()
    begin, end = len(whole.split(b"\n")[0]) + 1, len(whole)
    rng = np.random.default_rng(4)
    for _ in range(30):
        damaged = bytearray(whole)
        damaged[int(rng.integers(begin, end))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        again, read = run(folder)
        assert read <= 2  # two where an end of line was hit
        assert again.totals == first.totals


def test_a_journal_is_of_what_totals_depend_on():
    same = [
        STUDY,
        Study.of(name="other", classes={"b": 2, "a": 1}, window={"size": 3}, privacy={"min_voxels": 9}),
        Study.of(name="test", classes={"a": 1, "b": 2}, window={"size": 3}, party=[{"name": n} for n in "xyz"]),
    ]
    assert len({totals_digest(study) for study in same}) == 1
    others = [
        Study.of(name="test", classes={"a": 1}, window={"size": 3}),
        Study.of(name="test", classes={"a": 1, "b": 3}, window={"size": 3}),
        Study.of(name="test", classes={"a": 1, "b": 2}, window={"size": 5}),
        Study.of(name="test", classes={"a": 1, "b": 2}, window={"size": 3, "border": "clip"}),
        Study.of(name="test", classes={"a": 1, "b": 2}, window={"size": 3}, bounds={"intensity": 200}),
        Study.of(name="test", classes={"a": 1, "b": 2}, window={"size": 3}, standardise={"fraction_bits": 3}),
    ]
    asked = {"name": "test", "classes": {"a": 1}, "window": {"size": 3}, "statistics": {"gram": True}}
    others += [Study.of(**asked, feature=[{"kind": "mean", "window": size}]) for size in (3, 5)]
    assert len({totals_digest(study) for study in (STUDY, *others)}) == 1 + len(others)


def test_another_release_has_a_journal_of_its_own(monkeypatch):
    before = totals_digest(STUDY)
    monkeypatch.setattr(voxring.batch.journal, "VERSION", "0")
    assert totals_digest(STUDY) != before


def test_a_known_row_is_what_its_images_are(folder):
    """Also one without a class, which makes no patient."""
    run(folder)
    with Journal(folder / "state", STUDY, "here") as journal:
        for row in read_manifest(folder / "data" / "m.csv"):
            assert journal.find(row) == image_totals(row, STUDY)


def test_the_header_of_a_run_that_was_quicker_stands(folder, monkeypatch):
    first, _ = run(folder)
    path = path_of(folder)
    quicker, real = path.read_bytes(), voxring.batch.journal._append
    path.unlink()

    def slow(file, payload):
        real(file, payload)
        path.write_bytes(quicker)

    monkeypatch.setattr(voxring.batch.journal, "_append", slow)
    again, read = run(folder)
    assert (again.totals, read) == (first.totals, 0)


def test_another_study_has_a_journal_of_its_own(folder):
    run(folder)
    other = Study.of(name="test", classes={"a": 2}, window={"size": 3})
    batch, read = run(folder, other)
    assert read == 4
    assert batch.totals == party_batch(folder / "data" / "m.csv", other).totals


def test_a_journal_is_its_owners_alone_and_names_nobody(folder):
    run(folder)
    path = path_of(folder)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    content = path.read_bytes()
    for name in (b"Smith", b"Jones", b"0image", b"truth", os.fsencode(folder)):
        assert name not in content
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_file_that_is_no_journal_of_the_study_is_refused(folder):
    run(folder)
    path = path_of(folder)
    whole = path.read_bytes()
    foreign = path_of(folder, Study.of(name="test", classes={"a": 7})).read_bytes()
    for content in (b"", b"hello\n", whole[1:], foreign, whole.replace(b'"journal":1', b'"journal":2')):
        path.write_bytes(content)
        with pytest.raises(StudyError, match="expected the journal of this study"):
            run(folder)


def test_a_journal_that_cannot_be_written_is_told(folder, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[: len(data) // 2]))
    with pytest.raises(StudyError, match=r"cannot be kept: No space left"):
        run(folder)
    monkeypatch.undo()
    first, _ = run(folder, bad="stop")
    path_of(folder).write_bytes(path_of(folder).read_bytes().split(b"\n")[0] + b"\n")
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[: len(data) // 2]))
    with pytest.raises(StudyError, match=r"cannot be written: No space left"):
        run(folder)
    monkeypatch.undo()
    assert run(folder)[0].totals == first.totals
    (folder / "file").touch()
    with pytest.raises(StudyError, match="choose --state"):
        Journal(folder / "file", STUDY, "here")


@pytest.mark.parametrize("kind", ["image", "truth"])
def test_a_file_that_changes_while_it_is_read_is_bad(folder, monkeypatch, kind):
    real = voxring.batch.row.local_totals

    def slow(image, *arguments, **options):
        (folder / "data" / f"1{kind}.npy").touch()
        return real(image, *arguments, **options)

    monkeypatch.setattr(voxring.batch.row, "local_totals", slow)
    with pytest.raises(ImageError, match=rf"line 3: 1{kind}\.npy: it changed while it was read"):
        run(folder)
    monkeypatch.undo()
    assert run(folder)[1] == 1


SCRIPT = """
import sys
from pathlib import Path
from voxring import Study
from voxring.batch import Journal, image_totals, party_batch, read_manifest
folder, workers = Path(sys.argv[1]), int(sys.argv[2])
study = Study.of(name="test", classes={"a": 1, "b": 2}, window={"size": 3})
if __name__ == "__main__":
    print("begun", flush=True)
    with Journal(folder / "state", study, "here") as journal:
        party_batch(folder / "data" / "m.csv", study, journal=journal, workers=workers)
"""


def killed_at_random(folder, kills, workers, seed):
    """Run a batch, kill it with SIGKILL at random moments until it ends by itself; then compare."""
    rng = np.random.default_rng(seed)
    rows, data = 150, folder / "data"
    lines = ["image,ground_truth"]
    for i in range(rows):
        np.save(data / f"k{i}.npy", rng.integers(-100, 100, (6, 5, 4), np.int16))
        np.save(data / f"t{i}.npy", rng.integers(0, 3, (6, 5, 4), np.uint8))
        lines.append(f"k{i}.npy,t{i}.npy")
    (data / "m.csv").write_text("\n".join(lines))
    script = folder / "script.py"
    script.write_text(SCRIPT)
    expected = party_batch(data / "m.csv", STUDY).totals
    path = path_of(folder)
    after_kills = []
    for _ in range(kills):
        child = subprocess.Popen([sys.executable, script, folder, str(workers)], stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"begun\n"
        wanted = len(path.read_bytes().splitlines()) + rows // (kills + 2)
        until = time.monotonic() + 60
        while child.poll() is None and len(path.read_bytes().splitlines()) < wanted and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.01))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        after_kills.append(len(path.read_bytes().splitlines()))
    assert sorted(after_kills) == after_kills
    assert 1 < after_kills[0] < rows + 1
    batch, read = run(folder)
    assert batch.totals == expected
    assert read == rows + 1 - after_kills[-1]
    # the header and one line a row, so none was done twice, but for lines that were torn
    whole = [line for line in path.read_bytes().splitlines() if line.endswith(b"}]")]
    assert len(whole) == rows


@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_that_is_killed_goes_on_where_it_was(folder, workers):
    killed_at_random(folder, 1, workers, seed=workers)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(KILLS))
def test_many_kills(folder, seed):
    killed_at_random(folder, 12, 1 + seed % 3, seed)


def test_rows_that_failed_are_tried_again(folder):
    path = folder / "data" / "1image.npy"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with pytest.raises(VoxringError):
        run(folder)
    path.write_bytes(good)
    assert run(folder)[1] == 1


def test_importing_this_needs_no_cluster():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, voxring.batch; print(*sys.modules)"], capture_output=True, text=True
    )
    assert not {"dask", "distributed", "numba", "nibabel"} & set(done.stdout.split()), done.stderr
    assert Path(voxring.batch.__file__).name == "__init__.py"


@pytest.mark.parametrize("way", ["nii.gz", "gzip", "bzip2", "mha"])
@pytest.mark.parametrize("planes", [(0, 9), (2, 3)])
def test_what_is_hashed_while_it_is_read_is_what_stands_in_the_file(tmp_path, way, planes):
    image, key = np.random.default_rng(1).integers(-9, 9, (9, 60, 70), np.int16), b"k" * 32
    path = tmp_path / f"i.{way if '.' in way or way == 'mha' else 'nrrd'}"
    if way == "nii.gz":
        nibabel.save(nibabel.Nifti1Image(image.transpose(), np.eye(4)), path)
    elif way == "mha":
        header = (
            "NDims = 3\nDimSize = 70 60 9\nElementType = MET_SHORT\nCompressedData = True\nElementDataFile = LOCAL\n"
        )
        path.write_bytes(header.encode() + zlib.compress(image.tobytes()))
    else:
        header = f"NRRD0004\ntype: int16\ndimension: 3\nsizes: 70 60 9\nendian: little\nencoding: {way}\n\n"
        path.write_bytes(header.encode() + {"gzip": gzip, "bzip2": bz2}[way].compress(image.tobytes()))
    opened = open_image(path)
    with watching(key):
        read = opened.read(*planes)
    assert np.array_equal(read.voxels, image[slice(*planes)])
    ranges = sorted(span for source in read.sources for span in source.ranges)
    assert ranges[0][0] == 0
    assert all(stop >= start for (_, stop), (start, _) in pairwise(ranges))  # the header too, and nothing left between
    made = [source for source in read.sources if source.content]
    assert len(made) == 1
    assert made[0].content == digest(path, made[0].ranges, key)
    assert not any(source.content for source in opened.read().sources)


def test_a_folder_is_known_by_the_names_in_it(tmp_path: Path) -> None:
    """A slice that was added to a series makes another image, although no file that was read has changed."""
    key = b"k" * 32
    (tmp_path / "1.dcm").touch()
    before = digest(tmp_path, (), key)
    (tmp_path / "2.dcm").touch()
    assert digest(tmp_path, (), key) != before
    (tmp_path / "2.dcm").unlink()
    assert digest(tmp_path, (), key) == before
