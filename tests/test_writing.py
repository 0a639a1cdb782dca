"""Maps that voxring writes, read by others: nibabel, pynrrd, tifffile, pydicom; and by voxring's own readers."""

import gzip
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image as PillowImage

import dicom_files as dcm
from test_images import OBLIQUE, metaimage_bytes, nifti_bytes
from voxring.errors import ImageError
from voxring.images import Grid, Segment, open_image, read_ground_truth, read_image
from voxring.images.writing import map_path, map_writer

NAMES = (Segment("liver", 1, 0), Segment("läsion", 7, 0))
SHAPE = (4, 3, 5)


def ct(dtype="<i2", shape=SHAPE):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def a_map(dtype, shape=SHAPE):
    rng = np.random.default_rng(7)
    if np.dtype(dtype).kind == "f":
        return rng.random(shape, np.float32)
    return rng.choice(np.array([0, 1, 7], dtype), shape)


def write(image: Path, made, *, stem="map", segments=(), force=False, slabs=(1, 3)):
    grid = open_image(image).grid
    with map_writer(image.parent / stem, image, grid, made.dtype, segments=segments, force=force) as out:
        for planes in np.split(made, [slabs[0]]) if made.ndim == 3 else [made]:
            out.write(planes)
    return map_path(image.parent / stem, image, grid, made.dtype, named=bool(segments))


def assert_same_place(image: Path, written: Path, made):
    one, other = open_image(image), open_image(written)
    assert one.grid.shape == other.grid.shape
    if one.grid.affine is None:
        assert other.grid.affine is None
    else:
        assert np.array_equal(one.grid.affine, other.grid.affine)  # the very same floats
    got = other.read()
    assert (got.slope, got.intercept) == (1.0, 0.0)
    assert got.voxels.dtype == made.dtype
    assert np.array_equal(got.voxels, made)
    assert not list(image.parent.glob(".*partial"))


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_nifti_maps_have_the_images_header_but_for_what_the_voxels_are(tmp_path, ending, order, version, dtype):
    content = nifti_bytes(ct(order + "i2"), order=order, version=version, slope=2.0, inter=-1024.0, units=3)
    image = tmp_path / f"ct.{ending}"
    image.write_bytes(gzip.compress(content) if ending == "nii.gz" else content)
    made = a_map(dtype)
    written = write(image, made)
    assert written.name == f"map.{ending}"
    assert_same_place(image, written, made)
    before, after = nibabel.load(image), nibabel.load(written)
    assert type(before) is type(after)
    assert np.array_equal(np.asarray(after.dataobj), made.T)
    raw = gzip.decompress(written.read_bytes()) if ending == "nii.gz" else written.read_bytes()
    assert raw[int(before.header["sizeof_hdr"]) :][:4] == bytes(4)  # no extensions
    bits = before.header.structarr.dtype.fields["bitpix"][1]  # nibabel mends it when it reads
    assert np.frombuffer(raw, order + "i2", 1, bits) == 8 * made.itemsize
    changed = {"datatype", "bitpix", "scl_slope", "scl_inter", "vox_offset"}
    for field in before.header.structarr.dtype.names:
        if field not in changed:
            assert before.header[field].tobytes() == after.header[field].tobytes(), field


def test_nifti_keeps_a_qform_and_codes_and_drops_texts(tmp_path):
    one = nibabel.Nifti1Image(ct().T, None)
    rotation = np.diag([2.0, 3.0, 4.0, 1.0])
    rotation[:3, 3] = 5, 6, 7
    one.set_qform(rotation, code=2)
    one.header["descrip"] = b"Doe^Jane"
    one.header["intent_name"] = b"Doe^Jane"
    one.header["cal_max"] = 3000
    one.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Doe^Jane"))
    nibabel.save(one, tmp_path / "ct.nii")
    written = write(tmp_path / "ct.nii", made := a_map("u1"))
    assert_same_place(tmp_path / "ct.nii", written, made)
    after = nibabel.load(written).header
    assert (int(after["qform_code"]), int(after["sform_code"])) == (2, 0)
    assert np.array_equal(after.get_qform(), nibabel.load(tmp_path / "ct.nii").header.get_qform())
    assert float(after["cal_max"]) == 0
    assert b"Doe" not in written.read_bytes()


def test_nifti_of_trailing_axes_keeps_them(tmp_path):
    (tmp_path / "ct.nii").write_bytes(nifti_bytes(ct(), dims=[5, 3, 4, 1, 1]))
    written = write(tmp_path / "ct.nii", made := a_map("u1"))
    assert nibabel.load(written).shape == (5, 3, 4, 1, 1)
    assert np.array_equal(read_image(written).voxels, made)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_nrrd_maps_keep_the_geometry_word_for_word_and_name_their_labels(tmp_path, dtype):
    header = {
        "space": "left-posterior-superior",
        "space directions": OBLIQUE[:3, :3].T,
        "space origin": OBLIQUE[:3, 3],
        "kinds": ["domain"] * 3,
        "patient": "Doe^Jane",
    }
    nrrd.write(str(tmp_path / "ct.nrrd"), ct(), header, index_order="C")
    made = a_map(dtype)
    segments = NAMES if made.dtype.kind == "u" else ()
    written = write(tmp_path / "ct.nrrd", made, segments=segments)
    assert written.name == ("map.seg.nrrd" if segments else "map.nrrd")
    assert_same_place(tmp_path / "ct.nrrd", written, made)
    before = nrrd.read_header(str(tmp_path / "ct.nrrd"))
    got, after = nrrd.read(str(written), index_order="C")
    assert np.array_equal(got, made)
    for field in ("space", "space origin", "space directions", "kinds", "sizes", "dimension"):
        assert np.array_equal(before[field], after[field]), field
    assert b"Doe" not in written.read_bytes()
    if segments:
        truth = read_ground_truth(written)
        assert truth.segments == NAMES
        assert truth.find("läsion") == (0, 7)


def test_a_name_of_several_lines_stays_in_its_line(tmp_path):
    nrrd.write(str(tmp_path / "ct.nrrd"), ct(), index_order="C")
    written = write(tmp_path / "ct.nrrd", a_map("u1"), segments=[Segment("a\nsizes: 1 1 1\n\nb", 1, 0)])
    assert read_ground_truth(written).segments == (Segment("a sizes: 1 1 1 b", 1, 0),)


def test_a_detached_nrrd_gets_a_map_in_one_file(tmp_path):
    nrrd.write(str(tmp_path / "ct.nhdr"), ct(), index_order="C")
    written = write(tmp_path / "ct.nhdr", made := a_map("f4"))
    assert written.name == "map.nrrd"
    assert_same_place(tmp_path / "ct.nhdr", written, made)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("compressed", [False, True])
def test_metaimage_maps_keep_the_geometry_word_for_word(tmp_path, compressed, dtype):
    extra = "AnatomicalOrientation = RAI\nCenterOfRotation = 0 0 0\nComment = Doe^Jane\n"
    (tmp_path / "ct.mha").write_bytes(metaimage_bytes(ct(), compressed=compressed, extra=extra))
    written = write(tmp_path / "ct.mha", made := a_map(dtype), segments=NAMES)
    assert_same_place(tmp_path / "ct.mha", written, made)
    lines = [(tmp_path / name).read_bytes().split(b"ElementDataFile")[0] for name in ("ct.mha", "map.mha")]
    before, after = ({line.split(b" = ")[0]: line for line in part.splitlines() if b" = " in line} for part in lines)
    kept = (b"NDims", b"DimSize", b"Offset", b"TransformMatrix", b"ElementSpacing", b"AnatomicalOrientation")
    assert all(before[name] == after[name] for name in kept)
    assert b"Doe" not in written.read_bytes()


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("shape", [(3, 5), SHAPE])
def test_arrays_and_tiffs_get_maps_of_their_shape(tmp_path, shape, dtype):
    np.save(tmp_path / "ct.npy", ct(shape=shape))
    tifffile.imwrite(tmp_path / "ct.tif", ct(shape=shape), photometric="minisblack")
    made = a_map(dtype, shape)
    assert_same_place(tmp_path / "ct.npy", write(tmp_path / "ct.npy", made), made)
    written = write(tmp_path / "ct.tif", made)
    assert_same_place(tmp_path / "ct.tif", written, made)
    assert np.array_equal(tifffile.imread(written, key=range(shape[0]) if len(shape) == 3 else 0), made)


def test_a_png_gets_a_tiff(tmp_path):
    PillowImage.fromarray(ct("u1", (3, 5))).save(tmp_path / "ct.png")
    written = write(tmp_path / "ct.png", made := a_map("f4", (3, 5)))
    assert written.name == "map.tif"
    assert_same_place(tmp_path / "ct.png", written, made)


def complete(made):
    """Add the attributes of type 2 that a SEG repeats."""
    for name in ("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "PatientBirthDate", "PatientSex"):
        setattr(made, name, "")
    made.ReferringPhysicianName = ""
    return made


TILTED = np.array([[-0.7, 0.0, 0.0, 40.0], [0.0, -0.64, 1.2, -30.5], [0.0, 0.48, 1.6, 12.25], [0.0, 0.0, 0.0, 1.0]])


def series(folder, affine=TILTED, shape=SHAPE, **changes):
    folder.mkdir()
    for plane, one in enumerate(ct(shape=shape)):
        made = complete(dcm.ct_slice(one, affine, plane, **changes))
        dcm.save(made, folder / f"{(plane * 7919) % 101:03d}.dcm")
    return folder


@pytest.mark.parametrize("kind", ["series", "multiframe", "turned"])
def test_labels_of_a_dicom_series_are_a_seg_that_lies_on_it(tmp_path, kind):
    pytest.importorskip("highdicom")
    image = tmp_path / "ct"
    if kind == "series":
        series(image)
    else:
        order = [2, 0, 3, 1] if kind == "turned" else None
        image = dcm.save(complete(dcm.multiframe(ct(), TILTED, order)), tmp_path / "ct.dcm")
    made = a_map("u1")
    written = write(image, made, segments=NAMES)
    assert written.name == "map.dcm"
    grid = open_image(image).grid
    truth = read_ground_truth(written, grid)
    assert [(segment.name, segment.label) for segment in truth.segments] == [("liver", 1), ("läsion", 2)]
    layer, label = truth.find("läsion")
    assert np.array_equal(truth.layers[layer] == label, made == 7)
    layer, label = truth.find("liver")
    assert np.array_equal(truth.layers[layer] == label, made == 1)
    seg = pydicom.dcmread(written)
    assert seg.FrameOfReferenceUID == dcm.FRAME_OF_REFERENCE
    assert (seg.PatientID, seg.StudyInstanceUID) == ("4711", dcm.STUDY)
    assert seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "voxring"


def test_a_seg_names_the_patient_as_the_series_does_whatever_its_letters(tmp_path):
    pytest.importorskip("highdicom")
    image = series(tmp_path / "ct", SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    seg = pydicom.dcmread(write(image, a_map("u1"), segments=NAMES))
    assert seg.PatientName == "Müller^Jörg"
    assert seg.SegmentSequence[1].SegmentLabel == "läsion"


def test_probabilities_of_a_dicom_series_are_nifti_on_its_grid(tmp_path):
    written = write(series(tmp_path / "ct"), made := a_map("f4"))
    assert written.name == "map.nii.gz"
    image, got = open_image(tmp_path / "ct"), read_image(written)
    assert image.grid.difference(got.grid) is None
    assert np.array_equal(got.voxels, made)
    header = nibabel.load(written).header
    assert np.allclose(header.get_zooms(), np.linalg.norm(TILTED[:3, :3], axis=0))
    assert header.get_xyzt_units()[0] == "mm"


def test_a_series_whose_headers_lack_what_a_seg_repeats_is_refused_without_the_patient(tmp_path):
    pytest.importorskip("highdicom")
    image = series(tmp_path / "ct")
    for path in image.iterdir():
        made = pydicom.dcmread(path)
        del made.StudyInstanceUID
        made.save_as(path)
    with pytest.raises(ImageError, match="complete the series' headers") as caught:
        write(image, a_map("u1"), segments=NAMES)
    assert "Doe" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ct"]


def test_without_highdicom_the_way_out_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    image = series(tmp_path / "ct")
    with (
        pytest.raises(ImageError, match=r"pip install 'voxring\[dicom-seg\]'"),
        map_writer(tmp_path / "map", image, open_image(image).grid, "u1", segments=NAMES),
    ):
        pytest.fail("the block was entered")


def test_a_radiograph_without_a_place_gets_a_tiff(tmp_path):
    made = dcm.ct_slice(ct()[0], np.eye(4))
    del made.ImagePositionPatient, made.ImageOrientationPatient
    image = dcm.save(made, tmp_path / "ct.dcm")
    assert_same_place(image, write(image, labels := a_map("u1", (3, 5)), segments=NAMES), labels)


def test_a_file_that_is_there_is_kept_unless_told(tmp_path):
    np.save(tmp_path / "ct.npy", ct())
    first, second = np.zeros(SHAPE, np.uint8), np.ones(SHAPE, np.uint8)
    written = write(tmp_path / "ct.npy", first)
    with (
        pytest.raises(ImageError, match="it is kept"),
        map_writer(tmp_path / "map", tmp_path / "ct.npy", Grid(SHAPE), "u1"),
    ):
        pytest.fail("the block was entered, and would have been computed for nothing")
    assert not read_image(written).voxels.any()
    write(tmp_path / "ct.npy", second, force=True)
    assert read_image(written).voxels.all()


def test_a_file_that_came_meanwhile_is_kept(tmp_path):
    np.save(tmp_path / "ct.npy", ct())

    def meanwhile():
        with map_writer(tmp_path / "map", tmp_path / "ct.npy", Grid(SHAPE), "u1") as out:
            out.write(np.zeros(SHAPE, np.uint8))
            (tmp_path / "map.npy").write_bytes(b"another's")

    with pytest.raises(ImageError, match="meanwhile"):
        meanwhile()
    assert (tmp_path / "map.npy").read_bytes() == b"another's"


@pytest.mark.parametrize("ending", ["npy", "nii.gz", "tif", "mha"])
@pytest.mark.parametrize("planes", [0, 3, 5])
def test_a_map_of_other_planes_than_the_image_never_appears(tmp_path, ending, planes):
    image = tmp_path / f"ct.{ending}"
    if ending == "npy":
        np.save(image, ct())
    elif ending == "tif":
        tifffile.imwrite(image, ct(), photometric="minisblack")
    else:
        image.write_bytes(metaimage_bytes(ct()) if ending == "mha" else gzip.compress(nifti_bytes(ct())))
    with pytest.raises(ImageError, match="expected 4 planes"):
        write(image, np.zeros((planes, 3, 5), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == [image.name]


def test_an_error_within_leaves_nothing(tmp_path):
    np.save(tmp_path / "ct.npy", ct())

    def broken():
        with map_writer(tmp_path / "map", tmp_path / "ct.npy", Grid(SHAPE), "u1") as out:
            out.write(np.zeros((2, 3, 5), np.uint8))
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert [path.name for path in tmp_path.iterdir()] == ["ct.npy"]


@pytest.mark.parametrize("wrong", [np.zeros((4, 5, 3), np.uint8), np.zeros(SHAPE, np.uint16), np.zeros(SHAPE, "i1")])
def test_planes_of_another_shape_or_type_are_refused(tmp_path, wrong):
    np.save(tmp_path / "ct.npy", ct())
    with (
        pytest.raises(ImageError, match="expected planes of"),
        map_writer(tmp_path / "map", tmp_path / "ct.npy", Grid(SHAPE), "u1") as out,
    ):
        out.write(wrong)


def test_types_that_are_no_map_are_refused(tmp_path):
    np.save(tmp_path / "ct.npy", ct())
    with (
        pytest.raises(ImageError, match="uint8, uint16 or float32"),
        map_writer(tmp_path / "map", tmp_path / "ct.npy", Grid(SHAPE), "f8"),
    ):
        pytest.fail("the block was entered")


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path):
    np.save(tmp_path / "ct.npy", ct())
    with (
        pytest.raises(ImageError, match="cannot be written"),
        map_writer(tmp_path / "none" / "map", tmp_path / "ct.npy", Grid(SHAPE), "u1"),
    ):
        pytest.fail("the block was entered")


def test_the_same_map_is_the_same_bytes(tmp_path):
    (tmp_path / "ct.nii.gz").write_bytes(gzip.compress(nifti_bytes(ct())))
    made = a_map("f4")
    one = write(tmp_path / "ct.nii.gz", made, stem="one", slabs=(1,)).read_bytes()
    two = write(tmp_path / "ct.nii.gz", made, stem="two", slabs=(3,)).read_bytes()
    assert one == two
    assert one[3:8] == bytes(5)  # neither a name nor a time
