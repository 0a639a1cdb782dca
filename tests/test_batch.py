"""Manifests and a party's batch."""

import numpy as np
import pytest

from voxring import ImageError, LocalTotals, Study, StudyError, local_totals, party_totals
from voxring.batch import patient_totals, read_manifest


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
    p, r = patient_totals(path, STUDY)
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
        ('image,ground_truth\n"image0.npy,truth0.npy\n', "cannot be read as a CSV manifest"),
    ],
)
def test_a_bad_manifest_gets_one_clear_error(folder, text, message):
    path = manifest(folder, text)
    with pytest.raises(StudyError, match=message) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(str(path))
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
