"""DICOM series, multi-frame images, SEG and RTSTRUCT: written by pydicom, read without it."""

import itertools
import re
import struct
import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pydicom
import pytest
import slicerio
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless

import dicom_files as files
from voxring.batch import Row, image_totals
from voxring.errors import ImageError
from voxring.images import Grid, GroundTruth, Segment, read_ground_truth, read_image
from voxring.images.rtstruct import fill
from voxring.study import Study

CHEST = Path(slicerio.__file__).parent / "data"
# Oblique, right-handed, with the columns of a rotation times spacings 0.7, 0.8 and 2.5; and the same with a tilt.
TURN = np.array([[0.8, 0.6, 0.0], [-0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
AFFINE = np.eye(4)
AFFINE[:3, :3], AFFINE[:3, 3] = TURN * [0.7, 0.8, 2.5], [10.5, -20.25, 33.0]
TILTED = AFFINE + np.pad([[0.0], [0.4], [0.0]], [(0, 1), (2, 1)])


def volume(shape=(5, 6, 7), dtype="i2", seed=3):
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(info.min, info.max, shape, dtype, endpoint=True)


def refusal(read, path, *words, **arguments):
    with pytest.raises(ImageError) as caught:
        read(path, **arguments)
    message = str(caught.value)
    assert str(path) in message
    assert "Doe" not in message
    assert "4711" not in message
    for word in words:
        assert word in message, message
    return message


def assert_image(image, voxels, affine, slope=1, intercept=0):
    assert image.voxels.dtype == voxels.dtype
    assert image.voxels.flags.c_contiguous
    assert np.array_equal(image.voxels, voxels)
    assert (image.slope, image.intercept) == (slope, intercept)
    if affine is None:
        assert image.grid.affine is None
    else:
        assert image.grid.difference(Grid(voxels.shape, affine)) is None


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4"])
@pytest.mark.parametrize("affine", [AFFINE, TILTED], ids=["straight", "tilted"])
def test_a_series_comes_in_the_order_of_its_positions(tmp_path, dtype, affine):
    voxels = volume(dtype=dtype)
    assert_image(read_image(files.write_series(tmp_path / "s", voxels, affine)), voxels, affine)


def test_planes_rise_along_the_normal_whichever_way_they_were_written(tmp_path):
    voxels = volume()
    names = [f"{plane}.dcm" for plane in range(5)]
    reversed_affine = AFFINE.copy()
    reversed_affine[:3, 3] += 4 * AFFINE[:3, 2]
    reversed_affine[:3, 2] *= -1
    folder = files.write_series(tmp_path / "s", voxels[::-1], reversed_affine, names)
    assert_image(read_image(folder), voxels, AFFINE)


@pytest.mark.parametrize("order", [range(5), [3, 0, 4, 1, 2], range(4, -1, -1)], ids=["ordered", "mixed", "reversed"])
def test_frames_come_in_the_order_of_their_positions(tmp_path, order):
    voxels = volume()
    path = files.save(files.multiframe(voxels, AFFINE, order, "2.5", "-1024"), tmp_path / "m.dcm")
    assert_image(read_image(path), voxels, AFFINE, Fraction(5, 2), -1024)


def test_one_slice_is_an_image_of_two_axes(tmp_path):
    voxels = volume()
    path = files.save(files.ct_slice(voxels[2], AFFINE, 2), tmp_path / "IM000002")
    expected = AFFINE.copy()
    expected[:3, 3] += 2 * AFFINE[:3, 2]
    assert_image(read_image(path), voxels[2], expected)
    assert_image(read_image(tmp_path), voxels[2], expected)
    assert abs(np.linalg.det(read_image(path).grid.affine)) > 0.1
    path = files.save(files.pixels(files.header(files.CT, "CR", "1"), voxels[2]), tmp_path / "bare.dcm")
    assert_image(read_image(path), voxels[2], None)


def test_voxels_of_a_multiframe_file_are_mapped(tmp_path):
    path = files.save(files.multiframe(volume(), AFFINE), tmp_path / "m.dcm")
    voxels = read_image(path).voxels
    assert not voxels.flags.writeable
    assert not voxels.flags.owndata


@pytest.mark.parametrize("text", ["0.1", "1e-3", "-.25", "+2.", " 1.0000000001 "])
def test_slope_and_intercept_are_the_decimals_of_the_file(tmp_path, text):
    one = files.ct_slice(volume()[0], AFFINE)
    one.RescaleSlope, one.RescaleIntercept = text, "-1024.3"
    image = read_image(files.save(one, tmp_path / "a.dcm"))
    assert (image.slope, image.intercept) == (Fraction(text.strip()), Fraction(-10243, 10))
    assert isinstance(image.slope, Fraction)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("stored", "high"), [(12, 11), (12, 15), (10, 12), (16, 15)])
def test_bits_that_are_not_stored_are_dropped(tmp_path, signed, stored, high):
    raw = volume(dtype="u2")
    low = high + 1 - stored
    expected = (raw.astype(np.int64) >> low) & ((1 << stored) - 1)
    if signed:
        expected = np.where(expected >= 1 << (stored - 1), expected - (1 << stored), expected)
    changes = {"BitsStored": stored, "HighBit": high, "PixelRepresentation": int(signed)}
    expected = expected.astype("i2" if signed else "u2")
    assert_image(read_image(files.write_series(tmp_path / "s", raw, AFFINE, **changes)), expected, AFFINE)
    path = files.save(files.multiframe(raw, AFFINE, **changes), tmp_path / "m.dcm")
    assert_image(read_image(path), expected, AFFINE)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_other_encodings_give_the_same_image(tmp_path, syntax):
    voxels = volume(dtype="i2")
    made = files.multiframe(voxels, AFFINE)
    made.file_meta.TransferSyntaxUID = syntax
    if syntax is ExplicitVRBigEndian:
        made.PixelData = voxels.astype(">i2").tobytes()
    assert_image(read_image(files.save(made, tmp_path / "m.dcm")), voxels, AFFINE)


def test_sequences_of_a_defined_or_an_unknown_type_are_read(tmp_path):
    voxels = volume()
    made = files.multiframe(voxels, AFFINE)
    path = files.save(made, tmp_path / "m.dcm")
    for element in (made["SharedFunctionalGroupsSequence"], made["PerFrameFunctionalGroupsSequence"]):
        element.is_undefined_length = True
        for one in element.value:
            one.is_undefined_length_sequence_item = True
    assert path.read_bytes() != files.save(made, tmp_path / "undefined.dcm").read_bytes()
    assert_image(read_image(tmp_path / "undefined.dcm"), voxels, AFFINE)
    inner = files.shared(AFFINE)
    written = pydicom.filebase.DicomBytesIO()
    written.is_little_endian, written.is_implicit_VR = True, True
    pydicom.filewriter.write_sequence(written, pydicom.DataElement(0x52009229, "SQ", Sequence([inner])), ["ascii"])
    raw = written.getvalue()
    del made.SharedFunctionalGroupsSequence
    content = files.save(made, tmp_path / "un.dcm").read_bytes()
    at = content.index(struct.pack("<HH2s", 0x5200, 0x9230, b"SQ"))
    for length, end in ((len(raw), b""), (0xFFFFFFFF, struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))):
        unknown = struct.pack("<HH2sHI", 0x5200, 0x9229, b"UN", 0, length) + raw + end
        (tmp_path / "un.dcm").write_bytes(content[:at] + unknown + content[at:])
        assert_image(read_image(tmp_path / "un.dcm"), voxels, AFFINE)


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_expb.dcm",
        "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "examples_overlay.dcm",
        "J2K_pixelrep_mismatch.dcm", "rtdose_rle_1frame.dcm",
    ],
)  # fmt: skip
def test_pydicoms_own_files_have_its_pixels_and_scaling(name):
    path = Path(get_testdata_file(name))
    expected = pydicom.dcmread(path)
    image = read_image(path)
    assert np.array_equal(image.voxels, expected.pixel_array)
    assert image.slope == Fraction(str(expected.get("RescaleSlope", 1)))
    assert image.intercept == Fraction(str(expected.get("RescaleIntercept", 0)))
    left, back, up = expected.ImagePositionPatient
    assert image.grid.affine[:3, 3].tolist() == [-left, -back, up]


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("MR_truncated.dcm", "truncated"),
        ("MR_small_padded.dcm", "expected 8192 bytes of pixels, got 8320"),
        ("JPEG-lossy.dcm", "differ in the last bit"),
        ("JPEG2000.dcm", "1.2.840.10008.1.2.4.91"),
        ("SC_rgb_rle.dcm", "got RGB"),
        ("examples_palette.dcm", "got PALETTE COLOR"),
        ("image_dfl.dcm", "deflated"),
        ("rtdose.dcm", "15 frames state no positions"),
        ("rtplan.dcm", "got RTPLAN"),
        ("rtplan_truncated.dcm", "truncated"),
        ("no_meta.dcm", "no DICM"),
        ("liver_1frame.dcm", "give it as a ground truth"),
    ],
)
def test_pydicoms_files_that_are_no_exact_greyscale_images_are_refused(name, word):
    refusal(read_image, Path(get_testdata_file(name)), word)


def test_a_compressed_series_equals_the_plain_one(tmp_path):
    voxels = volume(dtype="u2")
    folder = files.write_series(tmp_path / "s", voxels, AFFINE)
    for path in folder.iterdir():
        made = pydicom.dcmread(path)
        made.compress(RLELossless)
        made.save_as(path)
    assert_image(read_image(folder), voxels, AFFINE)


def test_compressed_frames_equal_the_plain_ones(tmp_path):
    voxels = volume(dtype="u2")
    made = files.multiframe(voxels, AFFINE, [3, 0, 4, 1, 2])
    made.compress(RLELossless)
    assert_image(read_image(files.save(made, tmp_path / "m.dcm")), voxels, AFFINE)
    made.NumberOfFrames = 4
    made.PerFrameFunctionalGroupsSequence.pop()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, on a frame too many
        with pytest.raises(ImageError, match="equal steps"):
            read_image(files.save(made, tmp_path / "m.dcm"))
    made = files.ct_slice(voxels[0], AFFINE)
    made.compress(RLELossless)
    made.Rows = 5
    refusal(read_image, files.save(made, tmp_path / "rows.dcm"), "RLE pixels cannot be decoded")
    made.Rows, made.BitsAllocated, made.BitsStored, made.HighBit = 6, 8, 8, 7
    refusal(read_image, files.save(made, tmp_path / "bits.dcm"), "RLE")


def test_compressed_pixels_without_a_decoder_name_the_extra(monkeypatch):
    for missing in ("pydicom.pixels.decoders.base", "pydicom.uid"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, missing, None)
            refusal(read_image, Path(get_testdata_file("MR_small_RLE.dcm")), "RLE", "pip install 'voxring[dicom]'")


def test_nothing_of_pydicom_is_imported_for_plain_files(tmp_path):
    folder = files.write_series(tmp_path / "s", volume(), AFFINE)
    code = f"import sys, voxring.images; voxring.images.read_image({str(folder)!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pydicom", "gdcm", "nibabel"} & set(done.stdout.split())


# --- what makes no image ---------------------------------------------------------------------------------------------


def edited(folder, number=2, **changes):
    """Change one slice of a series of five; None deletes."""
    path = sorted(folder.iterdir())[number]
    made = pydicom.dcmread(path)
    for name, value in changes.items():
        if value is None:
            delattr(made, name)
        else:
            setattr(made, name, value)
    made.save_as(path)
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"RescaleSlope": "2"}, ["slope or intercept"]),
        ({"RescaleIntercept": "-1000"}, ["slope or intercept"]),
        ({"PixelRepresentation": 0}, ["signed"]),
        ({"Rows": 7, "Columns": 6}, ["rows"]),
        ({"BitsStored": 12, "HighBit": 11}, ["stored"]),
        ({"ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"]}, ["orientation", "localizer"]),
        ({"PixelSpacing": ["0.8", "0.71"]}, ["pixel spacing"]),
        ({"ImagePositionPatient": None}, ["states no position", "manifest one by one"]),
        ({"PixelSpacing": None}, ["states no position, orientation or pixel spacing"]),
        ({"ImagePositionPatient": ["-10.5", "20.25", "37"]}, ["between"]),
        ({"SeriesInstanceUID": "1.2.3.9"}, ["2 series", "folder of its own"]),
        ({"PhotometricInterpretation": "MONOCHROME1"}, ["MONOCHROME2", "MONOCHROME1"]),
        ({"SamplesPerPixel": 3}, ["MONOCHROME2"]),
        ({"NumberOfFrames": 2}, ["expected 168 bytes of pixels, got 84"]),
        ({"BitsAllocated": 12}, ["8, 16 or 32 bits"]),
        ({"BitsStored": 17}, ["make no sense"]),
        ({"Rows": 60}, ["expected 840 bytes of pixels, got 84"]),
        ({"RescaleSlope": None, "ModalityLUTSequence": Sequence([files.item(LUTExplanation="x")])}, ["table"]),
    ],
)  # fmt: skip
def test_slices_that_do_not_fit_are_refused_by_name(tmp_path, changes, words):
    folder = files.write_series(tmp_path / "s", volume(), AFFINE, [f"{n}.dcm" for n in range(5)])
    path = edited(folder, **changes)
    message = refusal(read_image, folder, *words)
    assert path.name in message or "series" in words[0]


def test_a_missing_slice_is_found_between_its_neighbours(tmp_path):
    folder = files.write_series(tmp_path / "s", volume((9, 6, 7)), AFFINE, [f"{n}.dcm" for n in range(9)])
    (folder / "6.dcm").unlink()
    refusal(read_image, folder, "between 5.dcm and 7.dcm lie 5 mm, between others 2.5 mm", "missing")
    edited(folder, 2, ImagePositionPatient=files.position(AFFINE, 1.997))
    refusal(read_image, folder, "between 5.dcm and 7.dcm")


def test_slices_at_one_place_are_refused(tmp_path):
    folder = files.write_series(tmp_path / "s", volume(), AFFINE, [f"{n}.dcm" for n in range(5)])
    edited(folder, 2, ImagePositionPatient=files.position(AFFINE, 1))
    refusal(read_image, folder, "1.dcm and 2.dcm lie at the same place", "times")


def test_a_slice_beside_the_line_of_the_others_is_refused(tmp_path):
    folder = files.write_series(tmp_path / "s", volume(), AFFINE, [f"{n}.dcm" for n in range(5)])
    aside = files.lps(AFFINE) @ [0.1, 0, 2, 1]
    edited(folder, 2, ImagePositionPatient=files.decimals(aside[:3]))
    refusal(read_image, folder, "2.dcm lies beside the line")


def test_positions_rounded_as_scanners_round_are_taken(tmp_path):
    affine = AFFINE.copy()
    affine[2, 2] = 0.703125
    folder = files.write_series(tmp_path / "s", volume((30, 6, 7)), affine)
    for number in range(30):
        path = sorted(folder.iterdir())[number]
        rounded = [f"{float(part):.2f}" for part in pydicom.dcmread(path).ImagePositionPatient]
        edited(folder, number, ImagePositionPatient=rounded)
    assert read_image(folder).voxels.shape == (30, 6, 7)


def test_what_else_lies_in_the_folder(tmp_path):
    voxels = volume()
    folder = files.write_series(tmp_path / "s", voxels, AFFINE)
    for name in ("LICENSE.txt", ".hidden", "DICOMDIR", "dicomdir", "scan.json"):
        (folder / name).write_text("x")
    files.save(files.seg({1: ("a", voxels > 0)}, AFFINE), folder / "seg.dcm")
    assert_image(read_image(folder), voxels, AFFINE)
    for name in ("slice.dcm", "IM0001", "1.2.840.7", "b.IMA"):
        (folder / name).write_bytes(b"x" * 200)
        refusal(read_image, folder, name, "take it out")
        (folder / name).unlink()
    (folder / "more").mkdir()
    refusal(read_image, folder, "inner folder")
    (tmp_path / "none").mkdir()
    refusal(read_image, tmp_path / "none", "found none in this folder")


def test_a_frame_that_does_not_fit_is_named(tmp_path):
    made = files.multiframe(volume(), AFFINE)
    made.PerFrameFunctionalGroupsSequence[3].PixelValueTransformationSequence = Sequence(
        [files.item(RescaleSlope="3", RescaleIntercept="0")]
    )
    made.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = Sequence()
    refusal(read_image, files.save(made, tmp_path / "m.dcm"), "frame 4 of m.dcm", "slope or intercept")
    made = files.multiframe(volume(), AFFINE)
    made.PerFrameFunctionalGroupsSequence.pop()
    refusal(read_image, files.save(made, tmp_path / "m.dcm"), "declares 5 frames and describes 4")


@pytest.mark.parametrize("text", ["", "1/3", "nan", "1e9999", "1_0", "0x1", "1" * 41, "1\\2"])
def test_numbers_that_are_no_decimals_are_refused(tmp_path, text):
    one = files.ct_slice(volume()[0], AFFINE)
    path = files.save(one, tmp_path / "a.dcm")
    raw = text.encode().ljust(len(text) + len(text) % 2)
    head = struct.pack("<HH2sH", 0x0028, 0x1053, b"DS", 2) + b"1 "
    content = path.read_bytes()
    assert content.count(head) == 1
    path.write_bytes(content.replace(head, struct.pack("<HH2sH", 0x0028, 0x1053, b"DS", len(raw)) + raw))
    if text:
        refusal(read_image, path, "RescaleSlope")
    else:
        assert read_image(path).slope == 1


# --- ground truth ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chest():
    image = read_image(CHEST / "CTChest4.nrrd")
    truth = read_ground_truth(CHEST / "Segmentation.seg.nrrd")
    named = {segment.label: (segment.name, truth.layers[0] == segment.label) for segment in truth.segments}
    return image, truth, named


@pytest.fixture(scope="module")
def as_dicom(chest, tmp_path_factory):
    """The chest as a series with its intercept, an enhanced multi-frame file, SEG and RTSTRUCT."""
    image, _, named = chest
    folder = tmp_path_factory.mktemp("chest")
    affine = image.grid.affine
    stored = (image.voxels.astype(np.int32) + 4000).astype("u2")
    files.write_series(folder / "series", stored, affine, RescaleIntercept="-4000")
    files.save(files.multiframe(image.voxels, affine, range(33, -1, -1)), folder / "multi.dcm")
    files.save(files.seg(named, affine), folder / "seg.dcm")
    regions = {label: (name, files.contours_of(mask, affine)) for label, (name, mask) in named.items()}
    files.save(files.rtstruct(regions), folder / "rtstruct.dcm")
    return folder


@pytest.mark.parametrize("window", [7, [2, 4, 6]])
def test_a_case_gives_the_same_integers_from_every_format(chest, as_dicom, window):
    _, _, named = chest
    study = Study.of(name="chest", classes={name: name for name, _ in named.values()}, window={"size": window})
    images = [CHEST / "CTChest4.nrrd", as_dicom / "series", as_dicom / "multi.dcm"]
    truths = [CHEST / "Segmentation.seg.nrrd", as_dicom / "seg.dcm", as_dicom / "rtstruct.dcm"]
    pairs = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]
    totals = [image_totals(Row(2, images[image], truths[truth], "p"), study) for image, truth in pairs]
    assert all(one == totals[0] for one in totals)
    assert all(totals[0][name].voxels == mask.sum() > 0 for name, mask in named.values())


ORDERS = {
    "as the image": (AFFINE, lambda a: a),
    "left-handed": (AFFINE @ np.diag([-1, 1, 1, 1]), lambda a: a[:, :, ::-1]),
    "from the feet": (AFFINE @ np.diag([1, 1, -1, 1]), lambda a: a[::-1]),
    "turned": (AFFINE[:, [1, 2, 0, 3]], lambda a: a.transpose(2, 0, 1)),
    "turned and left-handed": (AFFINE[:, [1, 0, 2, 3]], lambda a: a.transpose(0, 2, 1)),
    "tilted": (TILTED, lambda a: a),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_segments_are_placed_on_any_grid_by_where_they_lie(tmp_path, kind, order):
    affine, arranged = ORDERS[order]
    mask = np.random.default_rng(1).random((5, 6, 7)) < 0.4
    written = TILTED if order == "tilted" else AFFINE
    made = (
        files.seg({3: ("a", mask)}, written)
        if kind == "SEG"
        else files.rtstruct({3: ("a", files.contours_of(mask, written))})
    )
    expected = arranged(mask)
    # The affine's origin is voxel (0, 0, 0)'s place: move it to where the mirrored axis begins.
    affine = affine.copy()
    flips = {"left-handed": AFFINE[:3, 0] * 6, "from the feet": AFFINE[:3, 2] * 4}
    affine[:3, 3] = written[:3, 3] + flips.get(order, 0)
    truth = read_ground_truth(files.save(made, tmp_path / "gt.dcm"), Grid(expected.shape, affine))
    assert np.array_equal(truth.layers[0], expected * 3)
    assert truth.segments == (Segment("a", 3, 0),)
    assert truth.grid.affine is affine


def test_overlapping_segments_come_in_layers(tmp_path):
    rng = np.random.default_rng(2)
    masks = {n: (f"s{n}", rng.random((5, 6, 7)) < p) for n, p in ((4, 0.5), (2, 0.5), (9, 0.02), (300, 0.0))}
    masks[300][1][0, 0, 0] = True
    grid = Grid((5, 6, 7), AFFINE)
    regions = {n: (name, files.contours_of(mask, AFFINE)) for n, (name, mask) in masks.items()}
    for made in (files.seg(masks, AFFINE), files.rtstruct(regions)):
        truth = read_ground_truth(files.save(made, tmp_path / "gt.dcm"), grid)
        assert len(truth.layers) in (2, 3)
        assert [segment.name for segment in truth.segments] == ["s4", "s2", "s9", "s300"]
        for number, (name, mask) in masks.items():
            layer, label = truth.find(name)
            assert label == number
            assert truth.find(number) == (layer, number)
            assert np.array_equal(truth.layers[layer] == label, mask)


def test_names_keep_their_alphabet(tmp_path):
    mask = np.ones((5, 6, 7), bool)
    for charset, name in (("ISO_IR 192", "Läsion 肝臓"), ("ISO_IR 100", "Läsion"), ("ISO_IR 144", "печень")):
        made = files.seg({1: (name, mask)}, AFFINE)
        made.SpecificCharacterSet = charset
        truth = read_ground_truth(files.save(made, tmp_path / "gt.dcm"), Grid((5, 6, 7), AFFINE))
        assert truth.find(name) == (0, 1)


def test_fractions_are_taken_where_all_are_whole(tmp_path):
    mask = volume() > 0
    grid = Grid((5, 6, 7), AFFINE)
    path = files.save(files.seg({1: ("a", mask)}, AFFINE, full=200), tmp_path / "f.dcm")
    assert np.array_equal(read_ground_truth(path, grid).layers[0], mask)
    shares = np.where(mask, 200, 0).astype("u1")
    shares[2, 3, 4] = 100
    path = files.save(files.seg({1: ("a", shares)}, AFFINE, full=200), tmp_path / "f.dcm")
    refusal(read_ground_truth, path, "fractions", "BINARY", grid=grid)


def test_pydicoms_segmentation_lies_where_it_says(tmp_path):
    path = Path(get_testdata_file("liver_1frame.dcm"))
    made = pydicom.dcmread(path)
    refusal(read_ground_truth, path, "1 frames and describes 3", grid=Grid((4, 512, 512), AFFINE))
    del made.PerFrameFunctionalGroupsSequence[1:]
    path = files.save(made, tmp_path / "liver.dcm")
    group, common = made.PerFrameFunctionalGroupsSequence[0], made.SharedFunctionalGroupsSequence[0]
    place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
    turn = np.array(common.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    rows, columns = map(float, common.PixelMeasuresSequence[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = turn[:3] * columns, turn[3:] * rows, np.cross(turn[:3], turn[3:])
    affine[:3, 3] = place - 2 * affine[:3, 2]
    grid = Grid((4, made.Rows, made.Columns), np.diag([-1, -1, 1, 1]) @ affine)
    truth = read_ground_truth(path, grid)
    expected = np.zeros(grid.shape, bool)
    expected[2] = made.pixel_array
    assert expected.any()
    assert np.array_equal(truth.layers[0], expected)
    assert truth.segments == (Segment(made.SegmentSequence[0].SegmentLabel, 1, 0),)


@pytest.mark.parametrize(
    ("grid", "word"),
    [
        (None, "grid=image.grid"),
        (Grid((5, 6, 7)), "states no position"),
        (Grid((5, 6, 7), np.zeros((4, 4))), "no extent"),
        (Grid((4, 6, 7), AFFINE), "beyond the image|no plane"),
        (Grid((5, 5, 7), AFFINE), "beyond the image"),
        (Grid((5, 6, 7), AFFINE + np.pad([[0.0], [0], [1.25]], [(0, 1), (3, 0)])), "plane of the image"),
        (Grid((5, 6, 7), AFFINE + np.pad([[0.1], [0], [0]], [(0, 1), (3, 0)])), "plane of the image"),
        (Grid((5, 6, 7), AFFINE * [1.02, 1, 1, 1]), "plane of the image"),
        (Grid((5, 6, 7), TILTED), "plane of the image"),
    ],
)
def test_a_segmentation_of_another_grid_is_refused(tmp_path, grid, word):
    path = files.save(files.seg({1: ("a", volume() > 0)}, AFFINE), tmp_path / "s.dcm")
    assert re.search(word, refusal(read_ground_truth, path, grid=grid))


def test_damaged_segmentations_are_refused(tmp_path):
    grid, mask = Grid((5, 6, 7), AFFINE), volume() > 0

    def check(made, word):
        refusal(read_ground_truth, files.save(made, tmp_path / "s.dcm"), word, grid=grid)

    check(files.seg({0: ("a", mask)}, AFFINE), "other than 0")
    made = files.seg({1: ("a", mask), 2: ("b", mask)}, AFFINE)
    made.SegmentSequence[1].SegmentNumber = 1
    check(made, "two segments have one number")
    made.SegmentSequence[1].SegmentNumber = 7
    check(made, "belongs to no segment")
    made = files.seg({1: ("a", mask), 2: ("b", mask)}, AFFINE)
    made.PerFrameFunctionalGroupsSequence[5].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 1
    check(made, "two frames at one place")
    made = files.seg({1: ("a", mask)}, AFFINE)
    made.SegmentationType = "LABELMAP"
    check(made, "got LABELMAP")
    made.SegmentationType = "BINARY"
    del made.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    check(made, "frame 1 of s.dcm states no position")


def region(points, **how):
    return files.rtstruct({1: ("tumour", [np.asarray(points, float)])}, **how)


def test_regions_that_do_not_fit_are_refused_by_name(tmp_path):
    grid = Grid((5, 6, 7), np.eye(4))
    square = np.array([[1, 1, 2], [4, 1, 2], [4, 4, 2], [1, 4, 2]], float)

    def check(made, *words, name='ROI "tumour"'):
        refusal(read_ground_truth, files.save(made, tmp_path / "r.dcm"), name, *words, grid=grid)

    check(region(square + np.array([0, 0, 0.5])), "on no plane", "on its planes")
    check(region(square + np.array([0, 0, 3])), "on no plane")
    check(region(square * [1, 1, 0] + np.arange(4)[:, None] * [0, 0, 1]), "on no plane")
    check(region(square + np.array([1e6, 0, 0])), "far outside")
    check(region(square, kind="SOMETHING"), "closed planar contours, got SOMETHING")
    made = region(square)
    made.ROIContourSequence[0].ContourSequence[0].NumberOfContourPoints = 3
    check(made, "fewer or more points")
    made = region(square)
    made.ROIContourSequence[0].ReferencedROINumber = 5
    check(made, "disagree", name="r.dcm")
    made = files.rtstruct({0: ("tumour", [square])})
    check(made, "other than 0", name="r.dcm")
    mixed = files.rtstruct({1: ("tumour", [square, square[:, [2, 0, 1]]])})
    check(mixed, "different directions")


def test_points_and_open_contours_enclose_nothing(tmp_path):
    square = [[1, 1, 2], [4, 1, 2], [4, 4, 2], [1, 4, 2]]
    for kind in ("POINT", "OPEN_PLANAR"):
        truth = read_ground_truth(files.save(region(square, kind=kind), tmp_path / "r.dcm"), Grid((5, 6, 7), np.eye(4)))
        assert not truth.layers[0].any()
        assert truth.segments == (Segment("tumour", 1, 0),)


def test_a_contour_within_another_is_a_hole_and_centres_on_the_first_edges_count(tmp_path):
    square = np.array([[0, 0, 2], [5, 0, 2], [5, 5, 2], [0, 5, 2]], float)
    hole = np.array([[1, 2, 2], [1, 4, 2], [3, 4, 2], [3, 2, 2]], float)
    made = files.rtstruct({1: ("ring", [square, hole])})
    truth = read_ground_truth(files.save(made, tmp_path / "r.dcm"), Grid((3, 6, 7), np.eye(4)))
    expected = np.zeros((3, 6, 7), int)
    expected[2, :5, :5] = 1
    expected[2, 2:4, 1:3] = 0
    assert np.array_equal(truth.layers[0], expected)


def test_contours_through_centres_are_filled_alike_whatever_the_spacing(tmp_path):
    affine = np.array([[-0.7, 0, 0, 10.1], [0, -0.3, 0, 5.3], [0, 0, 1.1, -7.7], [0, 0, 0, 1]])
    expected = np.zeros((12, 9, 14), int)
    squares = []
    for plane in range(12):
        left, top, right, bottom = plane % 5, plane % 3, plane % 5 + 3 + plane % 4, plane % 3 + 2 + plane % 5
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        squares.append((np.column_stack([corners, [plane] * 4, [1] * 4]) @ affine.T)[:, :3])
        expected[plane, top:bottom, left:right] = 1
    made = files.rtstruct({1: ("a", squares)})
    truth = read_ground_truth(files.save(made, tmp_path / "r.dcm"), Grid(expected.shape, affine))
    assert np.array_equal(truth.layers[0], expected)


# --- filling ---------------------------------------------------------------------------------------------------------


def naive_fill(polygons, rows, columns):
    """From the definition: how many edges a ray from the centre to the left crosses, in fractions."""
    mask = np.zeros((rows, columns), bool)
    for row, column in itertools.product(range(rows), range(columns)):
        crossings = 0
        for polygon in polygons:
            points = [(Fraction(int(x), 1 << 14), Fraction(int(y), 1 << 14)) for x, y in polygon]
            for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
                if min(y0, y1) <= row < max(y0, y1):
                    crossings += x0 + (row - y0) * (x1 - x0) / (y1 - y0) <= column
        mask[row, column] = crossings % 2
    return mask


# In halves of a voxel, so that centres lie on vertices and edges; or anywhere.
VERTEX = st.one_of(
    st.tuples(st.integers(-3, 14), st.integers(-3, 14)).map(lambda p: (p[0] << 13, p[1] << 13)),
    st.tuples(st.integers(-(1 << 16), 9 << 14), st.integers(-(1 << 16), 9 << 14)),
)
POLYGON = st.lists(VERTEX, min_size=1, max_size=9).map(lambda points: np.array(points, np.int64))


@settings(max_examples=150, deadline=None)
@given(st.lists(POLYGON, min_size=1, max_size=3))
def test_fill_equals_counting_crossings(polygons):
    assert np.array_equal(fill(polygons, 5, 6), naive_fill(polygons, 5, 6))


@settings(max_examples=200, deadline=None)
@given(POLYGON, st.randoms())
def test_fill_does_not_depend_on_where_or_which_way_a_contour_is_drawn(polygon, chance):
    start = chance.randrange(len(polygon))
    assert np.array_equal(fill([polygon], 7, 6), fill([np.roll(polygon, start, axis=0)[::-1]], 7, 6))


@settings(max_examples=200, deadline=None)
@given(st.lists(VERTEX, min_size=4, max_size=4).map(lambda points: np.array(points, np.int64)))
def test_regions_with_an_edge_in_common_share_no_voxel(points):
    one, two, left, right = points

    def side(point):
        along, across = two - one, point - one
        return int(along[0] * across[1] - along[1] * across[0])

    assume(side(left) * side(right) < 0)
    first, second = (fill([np.array([one, two, tip])], 7, 7) for tip in (left, right))
    assert not (first & second).any()


def test_fill_at_the_limits_of_its_integers():
    limit = (1 << 30) - 1
    wide = np.array([[-limit, -limit], [limit, -limit], [limit, limit], [-limit, limit]])
    assert fill([wide], 3, 4).all()
    slanted = np.array([[-limit, -limit], [limit, limit], [limit, -limit]])
    assert np.array_equal(fill([slanted], 5, 5), naive_fill([slanted], 5, 5))
    many = np.array([[limit * (-1) ** n, -limit if n % 4 < 2 else limit] for n in range(1203)])
    assert np.array_equal(fill([many], 3, 3), naive_fill([many], 3, 3))


# --- any damage: the same, or an ImageError --------------------------------------------------------------------------

GRID = Grid((5, 6, 7), AFFINE)


def samples(folder):
    voxels = volume()
    small = {1: ("a", voxels > 20_000), 2: ("b", voxels > 0)}
    made = {
        "slice.dcm": files.ct_slice(voxels[0], AFFINE),
        "multi.dcm": files.multiframe(voxels, AFFINE),
        "seg.dcm": files.seg(small, AFFINE),
        "rtstruct.dcm": files.rtstruct({n: (name, files.contours_of(m, AFFINE)) for n, (name, m) in small.items()}),
        "rle.dcm": files.ct_slice(voxels[0].astype("u2"), AFFINE),
    }
    made["rle.dcm"].compress(RLELossless)
    return {name: files.save(one, folder / name).read_bytes() for name, one in made.items()}


SAMPLE_NAMES = ("slice.dcm", "multi.dcm", "seg.dcm", "rtstruct.dcm", "rle.dcm")


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    return folder, samples(folder)


def outcome(path, content):
    path.write_bytes(content)
    results = []
    for read in (read_image, lambda p: read_ground_truth(p, GRID)):
        try:
            got = read(path)
        except ImageError as error:
            assert path.name in str(error)  # noqa: PT017 - both outcomes are right here
            assert "Doe" not in str(error)  # noqa: PT017
            results.append(None)
            continue
        layers = got.layers if isinstance(got, GroundTruth) else (got.voxels,)
        assert all(layer.shape == got.grid.shape and 2 <= layer.ndim <= 3 and layer.size for layer in layers)
        results.append([layer.tolist() for layer in layers])
    return results


@pytest.mark.parametrize("name", SAMPLE_NAMES)
def test_truncation_anywhere_is_refused(sampled, name):
    folder, contents = sampled
    content = contents[name]
    assert any(outcome(folder / name, content))
    lengths = {
        *range(1, 400, 3),
        *range(400, len(content), max(1, len(content) // 150)),
        *range(len(content) - 30, len(content)),
    }
    for length in sorted(lengths & set(range(len(content)))):
        assert outcome(folder / name, content[:length]) == [None, None], length


@pytest.mark.parametrize("name", SAMPLE_NAMES)
def test_bytes_flipped_anywhere_give_an_image_or_an_error(sampled, name):
    folder, contents = sampled
    content = contents[name]

    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.integers(132, len(content) - 1),
                st.one_of(st.integers(0, 255), st.sampled_from(list(b"0123456789 .-\\\xff\x7f\x80"))),
            ),
            min_size=1,
            max_size=4,
        )
    )
    def flipped(changes):
        damaged = bytearray(content)
        for at, byte in changes:
            damaged[at] = byte
        outcome(folder / name, bytes(damaged))

    flipped()


def test_absurd_sizes_and_depths_take_no_memory(tmp_path):
    one = files.ct_slice(volume()[0], AFFINE, Rows=60_000, Columns=60_000)
    refusal(read_image, files.save(one, tmp_path / "a.dcm"), "bytes of pixels, got 84")
    one = files.ct_slice(volume()[0].astype("u2"), AFFINE)
    one.compress(RLELossless)
    one.Rows = one.Columns = 60_000
    refusal(read_image, files.save(one, tmp_path / "a.dcm"), "more pixels than the file can hold")
    deep = files.ct_slice(volume()[0], AFFINE)
    nested = b"".join(
        struct.pack("<HH2sHI", 0x0009, 0x1001, b"SQ", 0, 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
        for _ in range(5000)
    )
    path = files.save(deep, tmp_path / "a.dcm")
    content = path.read_bytes()
    at = content.index(struct.pack("<HH2s", 0x0010, 0x0010, b"PN"))
    path.write_bytes(content[:at] + nested + content[at:])
    refusal(read_image, path, "nested")


def test_a_lossy_syntax_is_refused_before_its_pixels_are_looked_at(tmp_path):
    one = files.ct_slice(volume()[0], AFFINE)
    one.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    one["PixelData"].is_undefined_length = True
    one.PixelData = pydicom.encaps.encapsulate([b"12"])
    refusal(read_image, files.save(one, tmp_path / "a.dcm"), str(JPEGBaseline8Bit), "decompress it once")
