"""Folders as hospitals keep them become manifests: pairs, what is left out and why, and patients' names."""

import csv
import json
import os
import re
import shutil
import stat
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner

import dicom_files as files
from voxring.batch import image_totals, read_manifest
from voxring.cli.scan import scan as command
from voxring.errors import StudyError
from voxring.scan import Pseudonyms, manifest, scan
from voxring.study import Study

AFFINE = np.diag([-0.7, -0.8, 2.5, 1.0])


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def pairs(root: Path, **how: str) -> list[tuple[str, str]]:
    found = scan(root, **how)
    return [(found.name(pair.image), found.name(pair.ground_truth)) for pair in found.pairs]


def left_out(root: Path, **how: str) -> dict[str, str]:
    return {one.path: one.reason for one in scan(root, **how).left_out}


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "truth"),
    [
        ("a.nii.gz", "a_seg.nii.gz"),
        ("a.nii.gz", "a-label.nii.gz"),
        ("a.nii", "a_labels.nii.gz"),
        ("a.nrrd", "a.seg.nrrd"),
        ("a.nrrd", "a-segmentation.seg.nrrd"),
        ("a.mha", "a_mask.mha"),
        ("a.png", "a_GT.png"),
        ("a_image.nii", "a_label.nii"),
        ("a_0000.nii", "a_seg.nii"),
        ("images/a.nii", "labels/a.nii"),
        ("image/a.tif", "masks/a.png"),
        ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"),
        ("imagesTs/a.nii.gz", "labelsTs/a_seg.nii.gz"),
        ("images_val/a.npy", "segmentations_val/a.npy"),
        ("p/q/images/a.nii", "p/q/ground_truth/a.nii"),
        ("a_ct.nii.gz", "a_seg.nii.gz"),
        ("a-T1w.nii", "a_mask.nii"),
        ("images/a_FLAIR.nii", "labels/a.nii"),
    ],
)
def test_names_that_say_what_belongs_together(tmp_path, image, truth):
    # The stem alone may be the image's whole name less _seg, never a part of it.
    touch(tmp_path, image, truth, "other.nii")
    expected = [] if "segmentation.seg" in truth else [(image, truth)]
    assert pairs(tmp_path) == expected
    assert left_out(tmp_path)["other.nii"] == "no ground truth found for this image"


def test_a_modality_is_left_away_where_no_image_fits_without(tmp_path):
    touch(tmp_path, "a.nii", "a_ct.nii", "a_seg.nii", "b_t1.nii", "b_t2.nii", "b_seg.nii")
    assert pairs(tmp_path) == [("a.nii", "a_seg.nii")]
    assert left_out(tmp_path)["b_seg.nii"] == "2 images fit: choose one with --image PATTERN"
    assert pairs(tmp_path, image="*_t2.nii") == [("b_t2.nii", "b_seg.nii")]


def test_halves_of_a_data_set_stay_apart(tmp_path):
    touch(tmp_path, "imagesTr/a.nii", "labelsTs/a.nii", "imagesTs/b.nii", "labelsTr/c.nii", "x/imagesTr/c.nii")
    assert pairs(tmp_path) == []
    assert len(left_out(tmp_path)) == 5


def test_several_partners_are_left_out_until_one_is_chosen(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii", "imagesTr/a_0001.nii", "labelsTr/a.nii", "b.nii", "b_seg.nii", "b_mask.nii")
    assert pairs(tmp_path) == []
    assert left_out(tmp_path) == {
        "imagesTr/a_0000.nii": "its ground truth fits 2 images",
        "imagesTr/a_0001.nii": "its ground truth fits 2 images",
        "labelsTr/a.nii": "2 images fit: choose one with --image PATTERN",
        "b.nii": "2 ground truths fit: choose one with --ground-truth PATTERN",
        "b_seg.nii": "one of 2 ground truths of its image",
        "b_mask.nii": "one of 2 ground truths of its image",
    }
    assert pairs(tmp_path, image="*_0001.nii") == [("imagesTr/a_0001.nii", "labelsTr/a.nii")]
    assert pairs(tmp_path, ground_truth="*_mask*") == [("b.nii", "b_mask.nii")]


# --- BIDS ------------------------------------------------------------------------------------------------------------


def test_bids_derivatives_find_their_images(tmp_path):
    touch(
        tmp_path,
        "dataset_description.json", "participants.tsv",
        "sub-01/ses-a/anat/sub-01_ses-a_acq-x_run-1_T1w.nii.gz", "sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz",
        "sub-02/anat/sub-02_FLAIR.nii.gz", "sub-02/func/sub-02_task-rest_bold.nii.gz", "sub-03/anat/sub-03_T1w.nii.gz",
        "sub-04/anat/sub-04_T1w.nii.gz", "sub-04/anat/sub-04_T2w.nii.gz", "sub-05/anat/sub-05_T1w.nii.gz",
        "derivatives/m/sub-01/ses-a/anat/sub-01_ses-a_acq-x_dseg.nii.gz",
        "derivatives/m/sub-01/ses-b/anat/sub-01_ses-b_space-orig_label-lesion_mask.nii.gz",
        "derivatives/m/sub-02/sub-02_desc-manual_dseg.nii.gz",
        "derivatives/m/sub-03/anat/sub-03_space-MNI_dseg.nii.gz",
        "derivatives/m/sub-03/anat/sub-03_space-MNI_desc-preproc_T1w.nii.gz",
        "derivatives/m/sub-03/anat/sub-03_label-GM_probseg.nii.gz",
        "derivatives/m/sub-04/anat/sub-04_space-T2w_dseg.nii.gz",
        "derivatives/m/sub-05/anat/sub-05_desc-aseg_dseg.nii.gz",
        "derivatives/m/sub-05/anat/sub-05_desc-brain_mask.nii.gz",
    )  # fmt: skip
    m = "derivatives/m/"
    expected = [
        (f"{m}sub-03/anat/sub-03_space-MNI_desc-preproc_T1w.nii.gz", f"{m}sub-03/anat/sub-03_space-MNI_dseg.nii.gz"),
        (
            "sub-01/ses-a/anat/sub-01_ses-a_acq-x_run-1_T1w.nii.gz",
            f"{m}sub-01/ses-a/anat/sub-01_ses-a_acq-x_dseg.nii.gz",
        ),
        (
            "sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz",
            f"{m}sub-01/ses-b/anat/sub-01_ses-b_space-orig_label-lesion_mask.nii.gz",
        ),
        ("sub-02/anat/sub-02_FLAIR.nii.gz", f"{m}sub-02/sub-02_desc-manual_dseg.nii.gz"),
        ("sub-04/anat/sub-04_T2w.nii.gz", f"{m}sub-04/anat/sub-04_space-T2w_dseg.nii.gz"),
    ]
    assert pairs(tmp_path) == expected
    assert left_out(tmp_path)["sub-05/anat/sub-05_T1w.nii.gz"].startswith("2 ground truths fit")
    assert left_out(tmp_path)["sub-03/anat/sub-03_T1w.nii.gz"] == "no ground truth found for this image"
    chosen = ("sub-05/anat/sub-05_T1w.nii.gz", f"{m}sub-05/anat/sub-05_desc-aseg_dseg.nii.gz")
    assert pairs(tmp_path, ground_truth="*desc-aseg_dseg*") == [chosen]
    patients = [pair.patient for pair in scan(tmp_path).pairs]
    assert patients == ["sub-03", "sub-01", "sub-01", "sub-02", "sub-04"]


def test_a_bids_mask_that_two_images_fit_is_left_out(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_T2w.nii", "derivatives/sub-1/anat/sub-1_dseg.nii")
    assert pairs(tmp_path) == []
    assert left_out(tmp_path)["derivatives/sub-1/anat/sub-1_dseg.nii"].startswith("2 images fit")
    assert pairs(tmp_path, image="*_T2w*") == [("sub-1/anat/sub-1_T2w.nii", "derivatives/sub-1/anat/sub-1_dseg.nii")]


@pytest.mark.parametrize(
    ("image", "truth", "fits"),
    [
        ("sub-1_run-1_T1w", "sub-1_run-1_dseg", True),
        ("sub-1_run-1_T1w", "sub-1_dseg", True),
        ("sub-1_run-1_T1w", "sub-1_run-2_dseg", False),
        ("sub-1_T1w", "sub-1_run-1_dseg", False),
        ("sub-1_ses-1_T1w", "sub-1_dseg", False),
        ("sub-1_ses-1_T1w", "sub-1_ses-2_dseg", False),
        ("sub-1_T1w", "sub-2_dseg", False),
        ("sub-1_desc-preproc_T1w", "sub-1_dseg", False),
        ("sub-1_space-MNI_T1w", "sub-1_dseg", False),
        ("sub-1_T1w", "sub-1_space-MNI_dseg", False),
        ("sub-1_space-MNI_T1w", "sub-1_space-MNI_dseg", True),
        ("sub-1_T1w", "sub-1_space-T1w_label-x_mask", True),
        ("sub-1_T2w", "sub-1_space-T1w_label-x_mask", False),
        ("sub-1_T1w", "sub-1_label-x_probseg", False),
    ],
)
def test_entities_say_which_image_a_derivative_was_made_from(tmp_path, image, truth, fits):
    touch(tmp_path, f"sub-1/anat/{image}.nii", f"derivatives/x/sub-1/anat/{truth}.nii")
    assert len(pairs(tmp_path)) == fits


def test_names_of_subjects_outside_bids_still_tell_patients_apart(tmp_path):
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii", "sub-01/anat/sub-01_T1w_seg.nii", "sub-02/c.nii", "sub-02/c_seg.nii")
    found = scan(tmp_path)
    assert [pair.patient for pair in found.pairs] == ["sub-01", "sub-02"]
    assert found.left_out == []


# --- tables ----------------------------------------------------------------------------------------------------------


def test_tables_with_image_and_mask_list_pairs(tmp_path):
    touch(tmp_path, "ct/1.nii", "ct/2.nii", "m/1.nii", "m/2.nii", "m/2b.nii", "loose.nii")
    (tmp_path / "cases.csv").write_text(
        "\ufeffID,Image,Mask,Patient_ID\n1,ct/1.nii,m/1.nii,Doe\n2, ct/2.nii ,m/2.nii,Roe\n2,ct/2.nii,m/2b.nii,Roe\n"
        "\n3,ct/3.nii,m/3.nii,Poe\n1,ct/1.nii,m/1.nii,Doe\n4,,,\n"
    )
    (tmp_path / "measurements.csv").write_text("a,b\n1,2\n")
    (tmp_path / "bad.csv").write_bytes(b"Image,Mask\n\xff\xfe,\n")
    found = scan(tmp_path)
    assert pairs(tmp_path) == [("ct/1.nii", "m/1.nii"), ("ct/2.nii", "m/2.nii"), ("ct/2.nii", "m/2b.nii")]
    assert [pair.patient for pair in found.pairs] == ["Doe", "Roe", "Roe"]
    assert [(one.path, one.reason) for one in found.left_out] == [
        ("bad.csv", "cannot be read as a CSV file in UTF-8"),
        ("cases.csv", "line 6: expected the paths of an image and a mask that exist, in quotes where they hold commas"),
        ("cases.csv", "line 7: the same image and mask as in an earlier line"),
        ("cases.csv", "line 8: expected the paths of an image and a mask that exist, in quotes where they hold commas"),
        ("loose.nii", "no ground truth found for this image"),
    ]


def test_tables_of_other_countries_systems_and_folders_are_read(tmp_path):
    touch(tmp_path, *(f"data/p, {n}/{what}.nii" for n in range(4) for what in ("image", "mask")))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "a.csv").write_text("Image;Mask\ndata/p, 0/image.nii;data/p, 0/mask.nii\n")
    (tmp_path / "b.csv").write_text('Image,Mask\n"data\\p, 1\\image.nii","data\\p, 1\\mask.nii"\n')
    (tmp_path / "c.csv").write_text("Image\tMask\n./data/p, 2/image.nii\t./data/p, 2/mask.nii\n")
    (tmp_path / "d.csv").write_text("Image,Mask\ndata/p, 3/image.nii,data/p, 3/mask.nii\n")
    assert pairs(tmp_path) == [(f"data/p, {n}/image.nii", f"data/p, {n}/mask.nii") for n in range(3)]
    assert left_out(tmp_path)["d.csv"].endswith("that exist, in quotes where they hold commas")


def test_a_bids_ground_truth_in_a_space_without_image_is_told_as_one(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii", "derivatives/x/sub-1/anat/sub-1_space-MNI_dseg.nii")
    assert set(left_out(tmp_path).values()) == {
        "no ground truth found for this image",
        "no image found for this ground truth",
    }


# --- DICOM -----------------------------------------------------------------------------------------------------------


def write_case(root, number, *, segments="SEG", patient=None, flat=False, slices=3):
    """A study of one series with its segments, in folders that say nothing."""
    rng = np.random.default_rng(number)
    voxels = rng.integers(-500, 500, (slices, 6, 7), np.int16)
    mask = rng.random((slices, 6, 7)) < 0.5
    folder = root / f"d{number}" / "0001"
    changes = {"StudyInstanceUID": f"1.{number}", "PatientID": patient or f"ID^{number}^secret"}
    files.write_series(folder, voxels, AFFINE, [f"IM{n}" for n in range(slices)], series=f"1.{number}.1", **changes)
    made = (
        files.seg({1: ("a", mask)}, AFFINE, series=f"1.{number}.2")
        if segments == "SEG"
        else files.rtstruct({1: ("a", files.contours_of(mask, AFFINE))}, series=f"1.{number}.2")
    )
    for name, value in changes.items():
        setattr(made, name, value)
    refers(made, f"1.{number}.1")
    place = folder if flat else root / f"d{number}" / "0002"
    place.mkdir(exist_ok=True)
    return folder, files.save(made, place / "IM9")


def refers(made, uid):
    if made.Modality == "SEG":
        made.ReferencedSeriesSequence[0].SeriesInstanceUID = uid
        return
    study = made.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    study.RTReferencedSeriesSequence[0].SeriesInstanceUID = uid


def change(path, **changes):
    made = pydicom.dcmread(path)
    for name, value in changes.items():
        setattr(made, name, value)
    made.save_as(path)


@pytest.mark.parametrize("segments", ["SEG", "RTSTRUCT"])
@pytest.mark.parametrize("flat", [False, True])
def test_segments_find_the_series_that_they_refer_to_and_it_can_be_read(tmp_path, segments, flat):
    cases = [write_case(tmp_path / "in", number, segments=segments, flat=flat) for number in (1, 2)]
    found = scan(tmp_path / "in")
    assert [(pair.image, pair.ground_truth) for pair in found.pairs] == cases
    assert [pair.patient for pair in found.pairs] == ["ID^1^secret", "ID^2^secret"]
    assert found.left_out == []
    out = tmp_path / "m.csv"
    out.write_text(manifest(found, out, Pseudonyms(bytes(32))))
    study = Study.of(name="t", classes={"a": 1}, window={"size": 3})
    for row, number in zip(read_manifest(out), (1, 2), strict=True):
        rng = np.random.default_rng(number)
        rng.integers(-500, 500, (3, 6, 7), np.int16)
        assert image_totals(row, study)["a"].voxels == (rng.random((3, 6, 7)) < 0.5).sum()


def test_segments_without_a_reference_belong_to_the_one_series_of_their_study(tmp_path):
    folder, path = write_case(tmp_path, 1)
    made = pydicom.dcmread(path)
    del made.ReferencedSeriesSequence
    made.save_as(path)
    assert [pair.image for pair in scan(tmp_path).pairs] == [folder]
    more = files.ct_slice(np.zeros((6, 7), np.int16), AFFINE, series="1.1.7", StudyInstanceUID="1.1", PatientID="x")
    (tmp_path / "more").mkdir()
    files.save(more, tmp_path / "more" / "IM1")
    assert scan(tmp_path).pairs == []
    assert "different patients" in left_out(tmp_path)["d1/0002/IM9"]
    change(tmp_path / "more" / "IM1", PatientID="ID^1^secret")
    assert "2 images fit" in left_out(tmp_path)["d1/0002/IM9"]


@pytest.mark.parametrize("segments", ["SEG", "RTSTRUCT"])
def test_a_reference_chooses_among_the_series_of_a_study(tmp_path, segments):
    folder, _ = write_case(tmp_path, 1, segments=segments)
    shutil.copytree(folder, tmp_path / "more")
    for path in (tmp_path / "more").iterdir():
        change(path, SeriesInstanceUID="1.1.7")
    assert [pair.image for pair in scan(tmp_path).pairs] == [folder]


def test_a_series_of_one_file_is_named_by_it(tmp_path):
    write_case(tmp_path, 1, slices=1)
    assert [pair.image.name for pair in scan(tmp_path).pairs] == ["IM0"]


def broken(case, tmp_path):
    """Spoil a good tree; return what is left out, by its path."""
    folder, path = write_case(tmp_path, 1)
    if case == "reference":
        made = pydicom.dcmread(path)
        refers(made, "9.9")
        made.save_as(path)
    elif case == "patient":
        change(path, PatientID="other^secret")
    elif case == "patients":
        change(folder / "IM1", PatientID="other^secret")
    elif case == "crowded":
        files.write_series(folder, np.zeros((2, 6, 7), np.int16), AFFINE, ["x1", "x2"], series="7.7")
    elif case == "scattered":
        (tmp_path / "d1" / "0003").mkdir()
        shutil.move(folder / "IM2", tmp_path / "d1" / "0003")
    elif case == "damaged":
        (folder / "IM1").write_bytes((folder / "IM1").read_bytes()[:-30])
    elif case == "strange":
        (folder / "notes").write_text("nothing of DICOM")
    elif case == "two":
        shutil.copy(path, path.with_name("IM10"))
    elif case == "alone":
        path.unlink()
    elif case == "series only":
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("case", "path", "reason"),
    [
        ("reference", "d1/0002/IM9", "no image found"),
        ("patient", "d1/0002/IM9", "different patients"),
        ("patients", "d1/0001", "slices of different patients"),
        ("crowded", "d1/0001", "2 series lie in this folder"),
        ("scattered", "d1/0003", "a series lies in 2 folders"),
        ("damaged", "d1/0001", "damaged"),
        ("damaged", "d1/0001/IM1", "truncated"),
        ("strange", "d1/0001", "expected a DICOM file, got none"),
        ("two", "d1/0001", "2 ground truths fit"),
        ("alone", "d1/0001", "no ground truth found"),
        ("series only", "d1/0002/IM9", "no image found"),
        ("patients", "d1/0002/IM9", "the series that it belongs to was left out"),
    ],
)
def test_dicom_that_fits_nothing_is_left_out_with_the_reason(tmp_path, case, path, reason):
    broken(case, tmp_path)
    found = scan(tmp_path)
    assert found.pairs == []
    assert reason in {one.path: one.reason for one in found.left_out}[path]
    assert not any("secret" in one.path + one.reason or "Doe" in one.reason for one in found.left_out)


# --- the tree --------------------------------------------------------------------------------------------------------


def test_links_are_followed_once_and_loops_end(tmp_path):
    touch(tmp_path, "a/x.nii", "a/x_seg.nii", "outside/y.nii", "outside/y_seg.nii")
    (tmp_path / "a" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "self").symlink_to("self")
    (tmp_path / "a" / "none").symlink_to("nothing")
    (tmp_path / "0").symlink_to(tmp_path / "a")
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").symlink_to(tmp_path / "a")
    (root / "b").symlink_to(tmp_path / "outside")
    assert pairs(root) == [("a/x.nii", "a/x_seg.nii"), ("b/y.nii", "b/y_seg.nii")]
    assert left_out(root) == {
        "a/up": "a link to a folder that was already looked through",
        "a/self": "cannot be read: Too many levels of symbolic links",
        "a/none": "a link to nothing",
    }
    (tmp_path / "a" / "in").symlink_to(tmp_path / "outside")
    assert pairs(tmp_path / "root" / "a") == [
        ("in/y.nii", "in/y_seg.nii"),
        ("x.nii", "x_seg.nii"),
    ]
    (tmp_path / "root" / "a").unlink()
    (tmp_path / "root" / "b").unlink()
    (tmp_path / "z").symlink_to(tmp_path / "a")
    # Not by the links that sort before or behind.
    assert pairs(tmp_path) == [("a/x.nii", "a/x_seg.nii"), ("outside/y.nii", "outside/y_seg.nii")]


def test_links_to_one_pair_are_one_pair(tmp_path):
    touch(tmp_path, "b.nii", "b_seg.nii")
    (tmp_path / "a.nii").symlink_to("b.nii")
    (tmp_path / "a_seg.nii").symlink_to("b_seg.nii")
    found = scan(tmp_path)
    assert [pair.image.name for pair in found.pairs] == ["a.nii"]
    assert left_out(tmp_path) == {"b.nii": "a link to an image that is in the manifest with the same ground truth"}
    (tmp_path / "m.csv").write_text(manifest(found, tmp_path / "m.csv", Pseudonyms(bytes(32))))
    assert len(read_manifest(tmp_path / "m.csv")) == 1


def test_what_cannot_be_read_is_left_out(tmp_path, monkeypatch):
    touch(tmp_path, "open/x.nii", "open/x_seg.nii", "shut/y.nii", "file")
    scandir = os.scandir

    def guarded(folder):
        if Path(folder).name == "shut":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    def opened(self, *arguments, **more):
        if self.name == "file":
            raise PermissionError(13, "Permission denied")
        return original(self, *arguments, **more)

    original = Path.open
    monkeypatch.setattr(os, "scandir", guarded)
    monkeypatch.setattr(Path, "open", opened)
    assert pairs(tmp_path) == [("open/x.nii", "open/x_seg.nii")]
    assert left_out(tmp_path) == dict.fromkeys(("shut", "file"), "cannot be read: Permission denied")
    with pytest.raises(StudyError, match="cannot be read: Permission denied"):
        scan(tmp_path / "shut")
    with pytest.raises(StudyError, match="expected a folder"):
        scan(tmp_path / "file")


def test_names_that_a_manifest_cannot_hold_are_left_out(tmp_path):
    touch(tmp_path, "a .nii", "a _seg.nii", " b/b.nii", " b/b_seg.nii", "c\n.nii", "c\n_seg.nii", "d.nii", "d_seg.nii")
    name = os.fsdecode(b"e\xff")
    touch(tmp_path, f"{name}.nii", f"{name}_seg.nii")
    assert pairs(tmp_path) == [("a .nii", "a _seg.nii"), ("d.nii", "d_seg.nii")]
    assert sum("rename it" in reason for reason in left_out(tmp_path).values()) == 3


def test_thousands_of_files_take_seconds_and_come_in_one_order(tmp_path):
    for number in range(1500):
        touch(tmp_path, f"imagesTr/c{number:04d}_0000.nii.gz", f"labelsTr/c{number:04d}.nii.gz")
    write_case(tmp_path, 1)
    for number in range(300):
        shutil.copy(tmp_path / "d1/0001/IM0", tmp_path / "d1/0001" / f"x{number}")
    start = time.process_time()
    found = scan(tmp_path)
    assert time.process_time() - start < 5
    assert len(found.pairs) == 1501
    assert found.pairs == sorted(found.pairs, key=lambda pair: pair.image)
    assert scan(tmp_path) == found


# --- patients and the command ----------------------------------------------------------------------------------------


def test_the_salt_is_secret_kept_and_used_again(tmp_path):
    state = tmp_path / "deep" / "state"
    one, two = Pseudonyms.kept(state), Pseudonyms.kept(state)
    salt = state / "patients.salt"
    assert stat.S_IMODE(salt.stat().st_mode) == 0o600
    assert len(salt.read_bytes()) == 32
    assert os.listdir(state) == ["patients.salt"]
    assert one.of("Doe") == two.of("Doe") == one.of(" Doe ") != one.of("Roe")
    assert re.fullmatch("[0-9a-f]{24}", one.of("Doe"))
    assert Pseudonyms.kept(tmp_path / "other").of("Doe") != one.of("Doe")
    salt.chmod(0o640)
    with pytest.raises(StudyError, match="mode 640"):
        Pseudonyms.kept(state)
    salt.chmod(0o600)
    salt.write_bytes(b"short")
    with pytest.raises(StudyError, match="expected a salt of 32 bytes"):
        Pseudonyms.kept(state)
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match="choose --state"):
        Pseudonyms.kept(tmp_path / "file")


def invoke(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_the_command_writes_a_manifest_and_tells_nobody_who(tmp_path):
    root = tmp_path / "images"
    write_case(root, 1)
    write_case(root, 2, patient="ID^1^secret")
    touch(root, "sub-77/x.nii", "sub-77/x_seg.nii", "loose.nii", "more/y.nii", "more/y_seg.nii", "z.nii", "z_seg.nii")
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "m.csv"
    done = invoke(root, "--out", out)
    assert done.exit_code == 0, done.output
    assert f"{out}: 5 images with ground truth, of 3 patients" in done.stdout
    assert "loose.nii" in done.stderr
    assert "no ground truth found" in done.stderr
    assert "2 images name no patient" in done.stderr
    rows = list(csv.reader(out.read_text().splitlines()))
    assert rows[0] == ["image", "ground_truth", "patient"]
    assert [row[0] for row in rows[1:]] == [
        "../images/d1/0001", "../images/d2/0001", "../images/more/y.nii", "../images/sub-77/x.nii", "../images/z.nii",
    ]  # fmt: skip
    who = [row[2] for row in rows[1:]]
    assert who[0] == who[1] != who[2] == who[4] != who[3] != who[0]
    assert "secret" not in done.output + out.read_text()
    assert all(re.fullmatch("[0-9a-f]{24}", one) for one in who)
    assert len(read_manifest(out)) == 5
    again = invoke(root, "--out", tmp_path / "again.csv", "--json")
    told = json.loads(again.stdout)
    assert (told["pairs"], told["patients"], told["manifest"]) == (5, 3, str(tmp_path / "again.csv"))
    assert told["left_out"] == [{"path": "loose.nii", "reason": "no ground truth found for this image"}]
    assert [row[2] for row in csv.reader((tmp_path / "again.csv").read_text().splitlines())][1:] == who
    refused = invoke(root, "--out", out)
    assert isinstance(refused.exception, StudyError)
    assert "never written over" in str(refused.exception)


def test_a_manifest_of_unknown_patients_has_no_such_column(tmp_path):
    touch(tmp_path, "x.nii", "x_seg.nii")
    done = invoke(tmp_path, "--out", tmp_path / "m.csv", "--state", tmp_path / "state")
    assert "each of a patient of its own" in done.stdout
    assert (tmp_path / "m.csv").read_text() == "image,ground_truth\nx.nii,x_seg.nii\n"


def test_a_folder_without_pairs_ends_with_an_error_after_the_reasons(tmp_path):
    touch(tmp_path, *(f"{number}.nii" for number in range(50)))
    done = invoke(tmp_path, "--out", tmp_path / "m.csv")
    assert isinstance(done.exception, StudyError)
    assert "found no image with its ground truth" in str(done.exception)
    assert "and 10 more: --json lists all" in done.stderr
    assert not (tmp_path / "m.csv").exists()
    done = invoke(tmp_path, "--out", tmp_path / "m.csv", "--json")
    assert len(json.loads(done.stdout)["left_out"]) == 50
