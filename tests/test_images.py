"""The readers of voxring.images against independent writers: nibabel, pynrrd, tifffile, Pillow, numpy and struct."""

import bz2
import contextlib
import gc
import gzip
import io
import itertools
import math
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import slicerio
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as PillowImage

from voxring.errors import ImageError
from voxring.images import Grid, GroundTruth, Segment, read_ground_truth, read_image

CHEST = Path(slicerio.__file__).parent / "data"
STORED = ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"]
SHAPES = st.one_of(hnp.array_shapes(min_dims=2, max_dims=2), hnp.array_shapes(min_dims=3, max_dims=3, max_side=6))
OBLIQUE = np.array([[-0.4, 0.1, 0.2, 10.5], [0.1, 0.6, -0.3, -20.25], [0.05, 0.2, 2.5, 33.0], [0.0, 0.0, 0.0, 1.0]])
FLIP = {"RAS": [1, 1, 1], "LAS": [-1, 1, 1], "LPS": [-1, -1, 1]}
SPACES = {"RAS": "right-anterior-superior", "LAS": "left-anterior-superior", "LPS": "left-posterior-superior"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@st.composite
def arrays(draw, dtypes=tuple(STORED), orders="<>", shapes=SHAPES):
    dtype = np.dtype(draw(st.sampled_from(orders)) + draw(st.sampled_from(dtypes)))
    elements = None
    if dtype.kind == "f":
        elements = st.floats(width=dtype.itemsize * 8, allow_nan=False)
    return draw(hnp.arrays(dtype, draw(shapes), elements=elements))


def assert_stored(image, expected, slope=1.0, intercept=0.0):
    assert image.voxels.dtype == expected.dtype.newbyteorder("=")
    assert image.voxels.dtype.isnative
    assert type(image.voxels) is np.ndarray
    assert image.voxels.flags.c_contiguous
    assert image.voxels.flags.aligned
    assert image.voxels.shape == image.grid.shape == expected.shape
    assert np.array_equal(image.voxels, expected)
    assert (image.slope, image.intercept) == (slope, intercept)


def refusal(read: Callable, path: Path, *words: str) -> str:
    with pytest.raises(ImageError) as caught:
        read(path)
    message = str(caught.value)
    assert path.name in message
    for word in words:
        assert word in message, message
    return message


def nifti_bytes(array, *, order="<", version=1, slope=1.0, inter=0.0, sform=OBLIQUE, qform=None, dims=None, units=2):
    """Write NIfTI by hand from its specification; the array's last axis is the file's fastest."""
    codes = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768, "i8": 1024, "u8": 1280}
    dims = list(array.shape[::-1]) if dims is None else dims
    dim = [len(dims), *dims, *[1] * (7 - len(dims))]
    code, bits = codes[array.dtype.str[1:]], array.dtype.itemsize * 8
    rows = np.zeros((3, 4)) if sform is None else sform[:3]
    quaternion, pixdim = ([0.0] * 6, [1.0] * 8) if qform is None else qform
    forms = (int(qform is not None), int(sform is not None))
    if version == 1:
        header = struct.pack(order + "i36x8h14xhhh8ff", 348, *dim, code, bits, 0, *pixdim, 352.0)
        header += struct.pack(order + "ffhbb", slope, inter, 0, 0, units) + bytes(252 - 124)
        header += struct.pack(order + "2h6f12f16x4s", *forms, *quaternion, *rows.ravel(), b"n+1\0")
        assert len(header) == 348
    else:
        header = struct.pack(
            order + "i8shh8q24x8dqdd", 540, b"n+2\0\r\n\x1a\n", code, bits, *dim, *pixdim, 544, slope, inter
        )
        header += bytes(344 - len(header))
        header += struct.pack(order + "2i6d12d4xi", *forms, *quaternion, *rows.ravel(), units)
        header += bytes(540 - len(header))
    return header + bytes(4) + array.astype(array.dtype.newbyteorder(order)).tobytes()


def metaimage_bytes(array, *, compressed=False, affine=OBLIQUE, data="LOCAL", extra="", header_only=False):
    """Write MetaImage by hand. ITK's matrix holds the direction of an axis in each row, in LPS."""
    names = {"i1": "CHAR", "u1": "UCHAR", "i2": "SHORT", "u2": "USHORT", "i4": "INT", "u4": "UINT", "f4": "FLOAT",
             "f8": "DOUBLE", "i8": "LONG_LONG", "u8": "ULONG_LONG"}  # fmt: skip
    n = array.ndim
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:n, :n], axis=0)
    matrix = (lps[:n, :n] / spacing).T
    header = (
        f"ObjectType = Image\nNDims = {n}\nBinaryData = True\n"
        f"BinaryDataByteOrderMSB = {array.dtype.str[0] == '>'}\nCompressedData = {compressed}\n"
        f"TransformMatrix = {' '.join(map(repr, map(float, matrix.ravel())))}\n"
        f"Offset = {' '.join(map(repr, map(float, lps[:n, 3])))}\nCenterOfRotation = 0 0 0\n"
        f"ElementSpacing = {' '.join(map(repr, map(float, spacing)))}\n"
        f"DimSize = {' '.join(map(str, array.shape[::-1]))}\n{extra}"
        f"ElementType = MET_{names[array.dtype.str[1:]]}\nElementDataFile = {data}\n"
    ).encode()
    raw = array.tobytes()
    return header if header_only else header + (zlib.compress(raw) if compressed else raw)


# --- round trips -----------------------------------------------------------------------------------------------------


@settings(max_examples=120)
@given(arrays(), st.sampled_from([1, 2]), st.booleans(), st.floats(-8, 8, width=16), st.floats(-2048, 2048, width=16))
def test_nifti_keeps_stored_numbers_and_scaling(folder, array, version, compressed, slope, inter):
    order = "<" if array.dtype.str[0] == "|" else array.dtype.str[0]
    content = nifti_bytes(array, order=order, version=version, slope=slope, inter=inter)
    path = folder / ("scan.nii.gz" if compressed else "scan.nii")
    path.write_bytes(gzip.compress(content, 1) if compressed else content)
    image = read_image(path)
    assert_stored(image, array, *((slope, inter) if slope else (1.0, 0.0)))
    oracle = nibabel.load(path)
    assert np.array_equal(image.voxels, oracle.dataobj.get_unscaled().T)
    assert np.array_equal(image.grid.affine, oracle.affine)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_reads_what_nibabel_writes_with_extensions(folder, kind, ending):
    voxels = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
    written = kind(voxels, OBLIQUE)
    written.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 3000))
    written.header.set_slope_inter(0.1, -1024)
    path = folder / f"written{ending}"
    nibabel.save(written, path)
    oracle = nibabel.load(path)
    image = read_image(path)
    assert_stored(image, oracle.dataobj.get_unscaled().T, oracle.dataobj.slope, oracle.dataobj.inter)
    assert image.grid.difference(Grid((5, 4, 3), OBLIQUE)) is None


@settings(max_examples=80)
@given(
    arrays(dtypes=(*STORED[:6], "f4", "f8")),
    st.sampled_from(["raw", "gzip", "bzip2"]),
    st.booleans(),
    st.sampled_from(["RAS", "LAS", "LPS"]),
)
def test_nrrd_equals_what_pynrrd_wrote(folder, array, encoding, detached, space):
    header = {"encoding": encoding}
    if array.ndim == 3:
        native = np.diag([*FLIP[space], 1]) @ OBLIQUE
        header |= {"space": SPACES[space], "space directions": native[:3, :3].T, "space origin": native[:3, 3]}
    path = folder / ("a.nhdr" if detached else "a.nrrd")
    nrrd.write(str(path), array, header, index_order="C")
    image = read_image(path)
    assert_stored(image, array)
    if array.ndim == 3:
        assert np.allclose(image.grid.affine, OBLIQUE, rtol=0, atol=1e-12)
    else:
        assert image.grid.affine is None


@settings(max_examples=80)
@given(arrays(), st.booleans(), st.booleans())
def test_metaimage_equals_what_was_written(folder, array, compressed, detached):
    if detached:
        path = folder / "m.mhd"
        whole = metaimage_bytes(array, compressed=compressed, data="m.raw")
        header = metaimage_bytes(array, compressed=compressed, data="m.raw", header_only=True)
        path.write_bytes(header)
        (folder / "m.raw").write_bytes(whole[len(header) :])
    else:
        path = folder / "m.mha"
        path.write_bytes(metaimage_bytes(array, compressed=compressed))
    image = read_image(path)
    assert_stored(image, array)
    n = array.ndim
    expected = np.eye(4)
    expected[:n, :n], expected[:n, 3] = OBLIQUE[:n, :n], OBLIQUE[:n, 3]
    assert np.allclose(image.grid.affine, expected, rtol=0, atol=1e-12)


@settings(max_examples=80)
@given(arrays(), st.sampled_from([None, "zlib", "tiled", "predictor"]), st.booleans())
def test_tiff_equals_what_tifffile_wrote(folder, array, how, big):
    path = folder / "t.tif"
    options = {None: {}, "zlib": {"compression": "zlib", "rowsperstrip": 2}}.get(how, {"compression": "zlib"})
    if how == "tiled":
        options |= {"tile": (16, 16)}
    if how == "predictor" and array.dtype.kind != "f":
        options |= {"predictor": 2}
    planes = array.reshape(-1, *array.shape[-2:])
    with tifffile.TiffWriter(path, bigtiff=big, byteorder=array.dtype.str[0].replace("|", "<")) as writer:
        for plane in planes:
            writer.write(plane, photometric="minisblack", metadata=None, contiguous=False, **options)
    assert_stored(read_image(path), planes[0] if len(planes) == 1 else array)


@settings(max_examples=60)
@given(arrays(dtypes=("u1", "u2", "?"), orders="=", shapes=hnp.array_shapes(min_dims=2, max_dims=2)))
def test_png_equals_what_pillow_wrote(folder, array):
    path = folder / "p.png"
    PillowImage.fromarray(array).save(path)
    assert_stored(read_image(path), array.view("u1") if array.dtype == bool else array)


@settings(max_examples=60)
@given(arrays(dtypes=(*STORED, "f2")), st.booleans())
def test_npy_keeps_numpys_axes_in_either_order(folder, array, fortran):
    path = folder / "n.npy"
    np.save(path, np.asfortranarray(array) if fortran else array)
    half = array.dtype.itemsize == 2 and array.dtype.kind == "f"
    assert_stored(read_image(path), array.astype("f4") if half else array)


@pytest.mark.parametrize(("bits", "levels"), [(1, 2), (2, 4), (4, 16)])
def test_png_of_few_bits_gives_the_stored_levels(folder, bits, levels):
    row = list(range(levels)) + [0] * (16 - levels) if levels < 16 else list(range(16))
    packed = bytes([0]) + int("".join(f"{level:0{bits}b}" for level in row), 2).to_bytes(2 * bits, "big")
    path = folder / "few.png"
    path.write_bytes(png_bytes(16, 1, bits, 0, packed))
    assert read_image(path).voxels.tolist() == [row]
    path.write_bytes(png_bytes(16, 1, bits, 3, packed, palette=bytes(3 * levels)))
    assert read_ground_truth(path).layers[0].tolist() == [row]
    refusal(read_image, path, "palette", "greyscale")


def png_bytes(columns, rows, bits, colour, scanlines, palette=b""):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    parts = chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, bits, colour, 0, 0, 0))
    parts += chunk(b"PLTE", palette) if palette else b""
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IDAT", zlib.compress(scanlines)) + chunk(b"IEND", b"")


def test_voxels_map_the_file_where_they_can(folder):
    array = np.arange(60, dtype="<i2").reshape(3, 4, 5)
    (folder / "map.nii").write_bytes(nifti_bytes(array))
    voxels = read_image(folder / "map.nii").voxels
    assert not voxels.flags.writeable
    assert not voxels.flags.owndata


def test_unaligned_voxels_come_aligned(folder):
    path = folder / "odd.mha"
    array = np.arange(24, dtype="<i4").reshape(2, 3, 4)
    for pad in range(4):
        path.write_bytes(metaimage_bytes(array, extra=f"Comment = {'x' * pad}\n"))
        assert_stored(read_image(path), array)


# --- geometry --------------------------------------------------------------------------------------------------------


def test_chest_and_its_segmentation_lie_on_one_grid():
    image = read_image(CHEST / "CTChest4.nrrd")
    truth = read_ground_truth(CHEST / "Segmentation.seg.nrrd")
    voxels, header = nrrd.read(str(CHEST / "CTChest4.nrrd"), index_order="C")
    labels, _ = nrrd.read(str(CHEST / "Segmentation.seg.nrrd"), index_order="C")
    assert image.voxels.shape == (34, 128, 128)
    assert_stored(image, voxels)
    assert len(truth.layers) == 1
    assert np.array_equal(truth.layers[0], labels)
    assert sorted(set(labels.ravel().tolist()) - {0}) == [s.label for s in truth.segments] == [1, 2, 3, 4, 5, 6, 7]
    assert truth.find("right lung") == truth.find(5) == (0, 5)
    assert image.grid.difference(truth.grid) is None
    expected = np.eye(4)
    expected[:3, :3], expected[:3, 3] = header["space directions"].T, header["space origin"]
    assert np.array_equal(image.grid.affine, np.diag([-1, -1, 1, 1]) @ expected)


def test_overlapping_segmentation_comes_in_layers():
    path = CHEST / "SegmentationOverlapping.seg.nrrd"
    truth = read_ground_truth(path)
    labels, _ = nrrd.read(str(path), index_order="C")
    assert labels.shape == (34, 128, 128, 2)
    for layer, expected in zip(truth.layers, np.moveaxis(labels, -1, 0), strict=True):
        assert np.array_equal(layer, expected)
    assert truth.grid.difference(read_image(CHEST / "CTChest4.nrrd").grid) is None
    assert truth.find("overlapping sphere") == (1, 1)
    assert truth.find("ribs") == (0, 1)
    assert truth.find(2) == (0, 2)
    with pytest.raises(ImageError, match=r'"ribs", "overlapping sphere".*name the segment'):
        truth.find(1)
    refusal(read_image, path, "2 layers", "ground truth")


def test_the_same_grid_from_every_format_with_geometry(folder):
    array = np.zeros((4, 5, 6), np.uint8)
    # A qform holds rotations only, so no shear here.
    spacing = np.array([0.7, 0.8, 2.5])
    turn = np.linalg.qr(OBLIQUE[:3, :3])[0]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * spacing, OBLIQUE[:3, 3]
    lps = np.diag([-1, -1, 1, 1]) @ affine
    (folder / "g.mha").write_bytes(metaimage_bytes(array, affine=affine))
    header = {"space": SPACES["LPS"], "space directions": lps[:3, :3].T, "space origin": lps[:3, 3]}
    nrrd.write(str(folder / "g.nrrd"), array, header, index_order="C")
    written = nibabel.Nifti1Image(array.T, affine)
    nibabel.save(written, folder / "s.nii")
    written.set_sform(None, 0)
    written.set_qform(affine, 1)
    nibabel.save(written, folder / "q.nii")
    grids = [read_image(folder / name).grid for name in ("g.mha", "g.nrrd", "s.nii", "q.nii")]
    for one, two in itertools.permutations(grids, 2):
        assert one.difference(two) is None
    assert np.array_equal(grids[3].affine, nibabel.load(folder / "q.nii").affine)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_the_grid_of_a_qform_is_nibabels_to_the_bit(folder, kind):
    rng = np.random.default_rng(0)
    for half_turn in (False, True) * 20:
        quaternion = np.append(0 if half_turn else rng.normal(), rng.normal(size=3))
        quaternion /= np.linalg.norm(quaternion)
        written = kind(np.zeros((2, 3, 4), np.uint8), None)
        header = written.header
        header["qform_code"], header["pixdim"][:4] = 1, [rng.choice([-1, 1]), *rng.uniform(0.1, 9, 3)]
        header["quatern_b"], header["quatern_c"], header["quatern_d"] = quaternion[1:]
        header["qoffset_x"], header["qoffset_y"], header["qoffset_z"] = rng.normal(size=3)
        header["vox_offset"] = len(header.binaryblock) + 4
        (folder / "q.nii").write_bytes(header.binaryblock + bytes(28))
        want = header.get_qform()
        assert np.array_equal(read_image(folder / "q.nii").grid.affine, want)


def test_nifti_prefers_sform_and_has_no_geometry_without_either(folder):
    array = np.zeros((2, 3, 4), np.uint8)
    qform = ([0.0, 0.0, 0.0, 7.0, 8.0, 9.0], [-1.0, 2.0, 3.0, 4.0, 1.0, 1.0, 1.0, 1.0])
    path = folder / "form.nii"
    path.write_bytes(nifti_bytes(array, qform=qform))
    assert np.allclose(read_image(path).grid.affine, OBLIQUE)
    path.write_bytes(nifti_bytes(array, sform=None, qform=qform))
    assert read_image(path).grid.affine.tolist() == [[2, 0, 0, 7], [0, 3, 0, 8], [0, 0, -4, 9], [0, 0, 0, 1]]
    path.write_bytes(nifti_bytes(array, sform=None))
    assert read_image(path).grid.affine is None


@pytest.mark.parametrize("absurd", [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e30])
@pytest.mark.parametrize("at", [*range(76, 92, 4), *range(256, 328, 4)])
@pytest.mark.parametrize("sform", [None, OBLIQUE])
def test_absurd_numbers_in_nifti_geometry_are_refused_or_kept_finite(folder, sform, at, absurd):
    qform = ([0.1, 0.2, 0.3, 1.0, 2.0, 3.0], [1.0] * 8)
    content = bytearray(nifti_bytes(np.zeros((2, 3, 4), np.uint8), sform=sform, qform=qform))
    struct.pack_into("<f", content, at, absurd)
    path = folder / "absurd.nii"
    path.write_bytes(content)
    with contextlib.suppress(ImageError):
        grid = read_image(path).grid
        assert np.isfinite(grid.affine).all()
        grid.difference(Grid(grid.shape, np.eye(4) * 1e300))


@pytest.mark.parametrize(("units", "scale"), [(0, 1), (1, 1000), (2, 1), (2 | 8, 1), (3, 0.001)])
def test_nifti_units_become_millimetres(folder, units, scale):
    path = folder / "units.nii"
    path.write_bytes(nifti_bytes(np.zeros((2, 3, 4), np.uint8), units=units))
    assert np.allclose(read_image(path).grid.affine[:3], OBLIQUE[:3] * scale)


def test_nrrd_in_a_space_that_is_no_patients_has_no_geometry(folder):
    header = {"space": "scanner-xyz", "space directions": np.eye(3), "space origin": [0, 0, 0]}
    nrrd.write(str(folder / "x.nrrd"), np.zeros((2, 3, 4), np.uint8), header, index_order="C")
    assert read_image(folder / "x.nrrd").grid.affine is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda a: a, None),
        (lambda a: a.astype(np.float32).astype(np.float64), None),
        (lambda a: None, None),
        (lambda a: a + np.pad([[3.1], [0], [0]], [(0, 1), (3, 0)]), "origin differs by 3.1 mm"),
        (lambda a: a * [1.01, 1, 1, 1], "spacing along columns 0.415331 mm against 0.419485 mm"),
        (lambda a: a * [1, 1, 1.01, 1], "spacing along planes"),
        (lambda a: a * [-1, 1, 1, 1], "directions differ: the far corner is off by 106 mm"),
        (lambda a: a + np.pad([[1e-5], [0], [0]], [(0, 1), (3, 0)]), None),
    ],
)
def test_grid_says_how_it_differs(change, expected):
    shape = (34, 128, 129)
    said = Grid(shape, OBLIQUE).difference(Grid(shape, change(OBLIQUE)))
    assert said == expected or (said and expected and said.startswith(expected))
    assert Grid(shape).difference(Grid(shape, change(OBLIQUE))) is None
    assert Grid((34, 128, 128)).difference(Grid((34, 128, 127))) == "shape (34, 128, 128) against (34, 128, 127)"


def test_grid_finds_a_difference_that_only_the_far_corner_shows():
    near = np.eye(4)
    far = near * [1.00002, 1, 1, 1]  # 0.00002 mm a voxel
    assert Grid((10, 10), near).difference(Grid((10, 10), far)) is None
    assert "columns" in Grid((10, 100), near).difference(Grid((10, 100), far))


# --- ground truth ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 1, 255], "f4", "u1"),
        ([-1, 127], "f8", "i1"),
        ([0, 65535], "f8", "u2"),
        ([-1, 255], "f8", "i2"),
        ([0, 2**32 - 1], "f8", "u4"),
        ([-1, 2**31 - 1], "f8", "i4"),
        ([0, 1], "f2", "u1"),
        ([0, 2**32 - 1], "i8", "u4"),
        ([-(2**31), 2**31 - 1], "i8", "i4"),
        ([0, 1], "u8", "i4"),
        ([0, 1], "bool", "u1"),
        ([0, 1], ">u2", "u2"),
    ],
)
def test_ground_truth_becomes_exact_integers(folder, values, dtype, expected):
    np.save(folder / "gt.npy", np.array([values, values[::-1]], dtype))
    (layer,) = read_ground_truth(folder / "gt.npy").layers
    assert layer.dtype == np.dtype(expected)
    assert layer.dtype.isnative
    assert layer.tolist() == [values, values[::-1]]


@pytest.mark.parametrize(
    ("values", "dtype", "word"),
    [
        ([0, 0.5], "f4", "fractions"),
        ([0, np.nan], "f4", "NaN"),
        ([0, np.inf], "f8", "infinity"),
        ([0, 2**32], "f8", "32 bits"),
        ([-1, 2**32 - 1], "f8", "32 bits"),
        ([0, 2**32], "i8", "32 bits"),
        ([-1, 2**31], "i8", "32 bits"),
        ([0, 2**63], "u8", "32 bits"),
    ],
)
def test_ground_truth_refuses_what_is_no_label(folder, values, dtype, word):
    np.save(folder / "gt.npy", np.array([values], dtype))
    message = refusal(read_ground_truth, folder / "gt.npy", word)
    assert "4294967296" not in message  # no value of the hospital's own


def test_images_of_64_bits_are_narrowed_or_refused(folder):
    path = folder / "wide.npy"
    np.save(path, np.array([[-(2**31), 2**31 - 1]]))
    assert read_image(path).voxels.dtype == np.int32
    np.save(path, np.array([[0, 2**32 - 1]], np.uint64))
    assert read_image(path).voxels.dtype == np.uint32
    np.save(path, np.array([[-1, 2**31]]))
    refusal(read_image, path, "32 bits")


@pytest.mark.parametrize(
    ("slope", "inter", "dtype", "expected"),
    [
        (1, 0, "u1", [0, 1, 2]),
        (0, 5, "u1", [0, 1, 2]),
        (math.nan, 5, "u1", [0, 1, 2]),
        (2, -1, "i2", [-1, 1, 3]),
        (-3, 0, "f4", [0, -3, -6]),
    ],
)
def test_ground_truth_applies_scaling_that_keeps_integers(folder, slope, inter, dtype, expected):
    path = folder / "scaled.nii"
    path.write_bytes(nifti_bytes(np.array([[0, 1, 2]], dtype), slope=slope, inter=inter))
    assert read_ground_truth(path).layers[0].tolist() == [expected]


@pytest.mark.parametrize(("slope", "inter"), [(0.5, 0), (1, 0.5), (1e30, 0), (2.0**40, 0), (1, 2.0**40)])
def test_ground_truth_refuses_scaling_that_does_not(folder, slope, inter):
    path = folder / "scaled.nii"
    path.write_bytes(nifti_bytes(np.array([[0, 1, 2]], np.uint8), slope=slope, inter=inter))
    refusal(read_ground_truth, path)


def test_find_by_name_and_by_label():
    layers = (np.zeros((2, 2), np.uint8),) * 3
    named = (Segment("a", 1, 0), Segment("b", 2, 1), Segment("a", 3, 1), Segment("c", 2, 1))
    truth = GroundTruth(layers, named, Grid((2, 2)), "gt.seg.nrrd")
    assert truth.find("b") == truth.find("c") == truth.find(2) == (1, 2)
    assert truth.find(1) == (0, 1)
    assert truth.find(99) == (0, 99)
    with pytest.raises(ImageError, match=r'gt\.seg\.nrrd.*"lesion".*"a", "b", "a", "c"'):
        truth.find("lesion")
    with pytest.raises(ImageError, match="2 segments"):
        truth.find("a")
    with pytest.raises(ImageError, match="names none"):
        GroundTruth(layers[:1], (), Grid((2, 2))).find("a")


def segmentation(folder, array, kinds="list domain domain domain", **keys):
    path = folder / "s.seg.nrrd"
    sizes = " ".join(map(str, array.shape[::-1]))
    text = f"NRRD0004\ntype: uchar\ndimension: {array.ndim}\nsizes: {sizes}\nkinds: {kinds}\nencoding: raw\n"
    text += "".join(f"{key}:={value}\n" for key, value in keys.items())
    path.write_bytes((text + "\n").encode() + array.tobytes())
    return path


def test_segments_keep_names_of_any_alphabet(folder):
    path = segmentation(folder, np.zeros((2, 3, 4), "u1"), "domain domain domain", Segment0_Name="Läsion: 肝臓")
    assert read_ground_truth(path).segments == (Segment("Läsion: 肝臓", 1, 0),)


def test_old_segmentations_have_a_layer_each(folder):
    array = np.arange(2 * 3 * 4 * 2, dtype="u1").reshape(2, 3, 4, 2)
    truth = read_ground_truth(segmentation(folder, array, Segment0_Name="a", Segment1_Name="b"))
    assert truth.segments == (Segment("a", 1, 0), Segment("b", 1, 1))
    assert [layer.tolist() for layer in truth.layers] == [array[..., 0].tolist(), array[..., 1].tolist()]


@pytest.mark.parametrize("layer", ["2", "-1", "x", "", "1 2"])
def test_segments_outside_the_layers_are_refused(folder, layer):
    array = np.zeros((2, 3, 4, 2), "u1")
    refusal(read_ground_truth, segmentation(folder, array, Segment0_Name="a", Segment0_Layer=layer))


def test_colours_in_nrrd_are_no_layers(folder):
    array = np.zeros((2, 3, 4, 3), "u1")
    refusal(read_ground_truth, segmentation(folder, array, "RGB-color domain domain domain"), "axes")
    refusal(read_image, segmentation(folder, array, "list domain domain domain"), "axes")


# --- files that must be refused --------------------------------------------------------------------------------------


def test_paths_that_hold_no_image_are_refused(tmp_path):
    refusal(read_image, tmp_path / "none.nii", "nothing there")
    (tmp_path / "folder.nii").mkdir()
    refusal(read_image, tmp_path / "folder.nii", "folder")
    (tmp_path / "empty.png").write_bytes(b"")
    refusal(read_ground_truth, tmp_path / "empty.png", "empty")
    os.mkfifo(tmp_path / "pipe.npy")
    refusal(read_image, tmp_path / "pipe.npy", "something else")
    for name in ("scan.jpg", "scan", "scan.gz", "nii"):
        (tmp_path / name).write_bytes(b"x")
        refusal(read_image, tmp_path / name, ".nii.gz", ".npy", "convert")
    (tmp_path / "loud.NPY").write_bytes((np.save(buffer := io.BytesIO(), np.eye(2)), buffer.getvalue())[1])
    assert read_image(str(tmp_path / "loud.NPY")).voxels.shape == (2, 2)
    refusal(read_image, tmp_path / ("x" * 300 + ".nii"))
    refusal(read_image, tmp_path / ("x" * 300))


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nrrd", "nhdr", "mha", "mhd", "tif", "tiff", "png", "npy", "dcm"])
@pytest.mark.parametrize(
    "content", [b"\0", b"\n", b"PK\x03\x04" + bytes(600), bytes(range(256)) * 4, b"\x1f\x8b", b"="]
)
def test_other_content_under_a_known_ending_is_refused(folder, ending, content):
    path = folder / f"other.{ending}"
    path.write_bytes(content)
    refusal(read_image, path)
    refusal(read_ground_truth, path)


def test_gzip_and_its_ending_must_agree(folder):
    content = nifti_bytes(np.zeros((2, 3, 4), "u1"))
    (folder / "e.nii").write_bytes(gzip.compress(content))
    refusal(read_image, folder / "e.nii", "name it .nii.gz")
    (folder / "e.nii.gz").write_bytes(content)
    refusal(read_image, folder / "e.nii.gz", "name it .nii")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dims", [[4, 3, 0], [4, -3, 2], [30000, 30000, 30000], [5], [2, 3, 4, 2], []])
def test_absurd_nifti_sizes_are_refused(folder, dims, compressed):
    content = nifti_bytes(np.zeros((2, 3, 4), "u1"), dims=dims)
    path = folder / ("d.nii.gz" if compressed else "d.nii")
    path.write_bytes(gzip.compress(content) if compressed else content)
    refusal(read_image, path)


def test_trailing_axes_of_one_voxel_are_dropped(folder):
    array = np.arange(24, dtype="u1").reshape(2, 3, 4)
    path = folder / "one.nii"
    for dims, shape in (
        ([4, 3, 2, 1, 1], (2, 3, 4)),
        ([4, 6, 1, 1], (1, 6, 4)),
        ([4, 6, 1], (1, 6, 4)),
        ([4, 6], (6, 4)),
    ):
        path.write_bytes(nifti_bytes(array, dims=dims))
        assert_stored(read_image(path), array.reshape(shape))


@pytest.mark.parametrize(
    ("at", "fmt", "value", "word"),
    [
        (70, "<h", 32, "complex"),
        (70, "<h", 128, "greyscale"),
        (70, "<h", 1536, "integers or floats"),
        (70, "<h", 1, "data type"),
        (70, "<h", 777, "data type 777"),
        (108, "<f", 0.0, "352"),
        (108, "<f", 352.5, "352"),
        (108, "<f", math.nan, "352"),
        (108, "<f", math.inf, "352"),
        (108, "<f", 1e9, "truncated"),
        (112, "<f", math.inf, "finite slope"),
        (116, "<f", math.nan, "finite slope"),
        (280, "<f", math.nan, "finite positions"),
        (344, "4s", b"ni1\0", ".hdr/.img"),
        (344, "4s", b"\0\0\0\0", "ANALYZE"),
        (40, "<h", 0, "axes"),
    ],
)
def test_damaged_nifti_fields_are_refused(folder, at, fmt, value, word):
    content = bytearray(nifti_bytes(np.zeros((2, 3, 4), "u1")))
    struct.pack_into(fmt, content, at, value)
    (folder / "f.nii").write_bytes(content)
    refusal(read_image, folder / "f.nii", word)


@pytest.mark.parametrize(("first", "turned", "spacing"), [(1.0, 1.0, 1.0), (0.0, 0.0, 1.0), (0.0, 1.0, -1.0)])
def test_a_qform_that_is_no_rotation_is_refused(folder, first, turned, spacing):
    qform = ([first, 1.0, 0.0, 0.0, 0.0, 0.0], [turned, spacing, *[1.0] * 6])
    (folder / "q.nii").write_bytes(nifti_bytes(np.zeros((2, 3, 4), "u1"), sform=None, qform=qform))
    refusal(read_image, folder / "q.nii", "rotation")


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("NRRD0004", "NRRD0009", "NRRD0005"),
        ("sizes: 4 3 2", "sizes: 4 3 0", "at least 1"),
        ("sizes: 4 3 2", "sizes: 4 3 2.5", "integers"),
        ("sizes: 4 3 2", "sizes: 4 3", "dimension"),
        ("sizes: 4 3 2", "sizes: 4 3 " + "9" * 30, "truncated"),
        ("sizes: 4 3 2", "sizes: 4 3 " + "9" * 5000, "integers"),
        ("sizes: 4 3 2\n", "", "sizes"),
        ("type: short", "type: block", "block"),
        ("type: short", "type: complex", "greyscale"),
        ("endian: little\n", "", "endian"),
        ("endian: little", "endian: middle", "middle"),
        ("encoding: raw", "encoding: ascii", "gzip"),
        ("encoding: raw", "encoding: raw\nencoding: raw", "twice"),
        ("encoding: raw", "encoding: raw\nline skip: 2", "line skip"),
        ("encoding: raw", "encoding: raw\nbyte skip: -2", "byte skip"),
        ("encoding: raw", "encoding: gzip\nbyte skip: 2", "byte skip"),
        ("encoding: raw", "encoding: raw\nbyte skip: 20", "truncated"),
        ("encoding: raw", "encoding: raw\nno colon", "field: value"),
        ("encoding: raw", "encoding: raw\ndata file: LIST", "one file"),
        ("encoding: raw", "encoding: raw\ndata file: a%03d.raw 1 9 1", "one file"),
        ("encoding: raw", "encoding: raw\ndata file: nowhere.raw", "no such file"),
        ("encoding: raw", "encoding: raw\ndata file: ", "no such file"),
        ("(1,0,0)", "(nan,0,0)", "finite"),
        ("(1,0,0)", "(1,0)", "finite"),
        ("(1,0,0)", "none", "space directions"),
        ("(1,0,0)", "(1e999,0,0)", "finite"),
    ],
)
def test_damaged_nrrd_headers_are_refused(folder, old, new, word):
    text = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: LPS\nsizes: 4 3 2\nendian: little\nencoding: raw\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\n\n"
    )
    path = folder / "h.nrrd"
    path.write_bytes(text.encode() + bytes(48))
    assert read_image(path).voxels.shape == (2, 3, 4)
    assert old in text
    path.write_bytes(text.replace(old, new).encode() + bytes(48))
    refusal(read_image, path, word)


def test_voxels_at_the_end_of_a_file_are_found(folder):
    array = np.arange(24, dtype="<i2").reshape(2, 3, 4)
    (folder / "end.raw").write_bytes(b"some other header" + array.tobytes())
    (folder / "end.nhdr").write_text(
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 3 2\nendian: little\nencoding: raw\nbyteskip: -1\n"
        "datafile: end.raw\n"
    )
    assert_stored(read_image(folder / "end.nhdr"), array)
    header = metaimage_bytes(array, data="end.raw", extra="HeaderSize = -1\n", header_only=True)
    (folder / "end.mhd").write_bytes(header)
    assert_stored(read_image(folder / "end.mhd"), array)


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("NDims = 3", "NDims = 2", "NDims"),
        ("NDims = 3\n", "", "NDims"),
        ("DimSize = 4 3 2", "DimSize = 4 3 -2", "at least 1"),
        ("DimSize = 4 3 2", "DimSize = 4 3 200", "truncated"),
        ("DimSize = 4 3 2", "DimSize = 4 3 two", "integers"),
        ("MET_SHORT", "MET_STRING", "MET_STRING"),
        ("MET_SHORT", "MET_USHORT_ARRAY", "greyscale"),
        ("BinaryData = True", "BinaryData = False", "binary"),
        ("BinaryData = True", "BinaryData = maybe", "True or False"),
        ("CompressedData = False", "CompressedData = True", "corrupt"),
        ("ElementDataFile = LOCAL", "ElementDataFile = LIST", "one file"),
        ("ElementDataFile = LOCAL", "ElementDataFile = LIST 2D", "one file"),
        ("ElementDataFile = LOCAL", "ElementDataFile = s%03d.raw 1 2 1", "one file"),
        ("ElementDataFile = LOCAL", "ElementDataFile = nowhere.raw", "no such file"),
        ("ElementDataFile = LOCAL\n", "", "ElementDataFile"),
        ("ElementSpacing = ", "ElementSpacing = inf ", "finite"),
        ("Offset = ", "Offset = nan ", "finite"),
        ("ElementType", "ElementNumberOfChannels = 3\nElementType", "one channel"),
        ("ElementType", "HeaderSize = -2\nElementType", "HeaderSize"),
        ("ElementType", "HeaderSize = -1 -1\nElementType", "HeaderSize"),
    ],
)
def test_damaged_metaimage_headers_are_refused(folder, old, new, word):
    content = metaimage_bytes(np.ones((2, 3, 4), "<i2"))
    assert old.encode() in content
    path = folder / "h.mha"
    path.write_bytes(content.replace(old.encode(), new.encode(), 1))
    refusal(read_image, path, word)


def test_metaimage_knows_the_older_names_and_files_without_geometry(folder):
    path = folder / "old.mha"
    array = np.arange(6, dtype=">u2").reshape(2, 3)
    path.write_bytes(
        b"NDims = 2\nDimSize = 3 2\nElementByteOrderMSB = True\nElementType = MET_USHORT\nElementDataFile = LOCAL\n"
        + array.tobytes()
    )
    assert_stored(read_image(path), array)
    assert read_image(path).grid.affine is None
    path.write_bytes(path.read_bytes().replace(b"NDims", b"Position = 3 4\nElementSize = 2 5\nNDims"))
    assert_stored(read_image(path), array)
    assert read_image(path).grid.affine[:2].tolist() == [[-2, 0, 0, -3], [0, -5, 0, -4]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_png_of_several_channels_is_refused_with_the_remedy(folder, mode):
    PillowImage.new(mode, (4, 3)).save(folder / "c.png")
    refusal(read_image, folder / "c.png", "greyscale")
    refusal(read_ground_truth, folder / "c.png", "greyscale")


def test_png_animation_is_refused(folder):
    frames = [PillowImage.new("L", (4, 3), level) for level in (0, 9)]
    frames[0].save(folder / "anim.png", save_all=True, append_images=frames[1:])
    refusal(read_image, folder / "anim.png", "animation")


def test_png_bomb_is_refused_before_memory_is_taken(folder):
    (folder / "bomb.png").write_bytes(png_bytes(2**30, 2**30, 16, 0, b"\0"))
    refusal(read_image, folder / "bomb.png", "more pixels")


def test_tiff_that_is_no_grey_volume_is_refused(folder):
    path = folder / "bad.tif"
    tifffile.imwrite(path, np.zeros((4, 5, 3), "u1"), photometric="rgb")
    refusal(read_image, path, "greyscale")
    tifffile.imwrite(path, np.zeros((4, 5), "c8"))
    refusal(read_image, path, "complex")
    with tifffile.TiffWriter(path) as writer:
        writer.write(np.zeros((4, 5), "u1"))
        writer.write(np.zeros((2, 2), "u1"))
    refusal(read_image, path, "one size")
    tifffile.imwrite(path, np.zeros((2, 3, 4, 5), "u1"), imagej=True, metadata={"axes": "ZCYX"})
    refusal(read_image, path, "channel")
    tifffile.imwrite(path, np.zeros((3, 4, 5), "u1"), ome=True, metadata={"axes": "TYX"})
    refusal(read_image, path, "TYX")


def test_tiff_stacks_of_imagej_and_ome_are_volumes(folder):
    path = folder / "stack.tif"
    array = np.arange(60, dtype="u2").reshape(3, 4, 5)
    for options in ({"imagej": True, "metadata": {"axes": "ZYX"}}, {"ome": True, "metadata": {"axes": "ZYX"}}, {}):
        tifffile.imwrite(path, array, photometric="minisblack", **options)
        assert_stored(read_image(path), array)


def test_tiff_palettes_are_labels(folder):
    path = folder / "palette.tif"
    array = np.arange(20, dtype="u1").reshape(4, 5)
    tifffile.imwrite(path, array, photometric="palette", colormap=np.zeros((3, 256), "u2"))
    assert np.array_equal(read_ground_truth(path).layers[0], array)
    refusal(read_image, path, "palette")


def test_tiff_whose_chain_of_pages_never_ends_is_refused(folder):
    path = folder / "loop.tif"
    tifffile.imwrite(path, np.zeros((4, 5), "u1"), metadata=None, byteorder="<")
    content = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", content, 4)
    (tags,) = struct.unpack_from("<H", content, first)
    struct.pack_into("<I", content, first + 2 + 12 * tags, first)
    path.write_bytes(content)
    refusal(read_image, path, "no end")


def tag_at(content: bytes, code: int) -> int:
    """Find where a tag of the first page stands in a small-endian classic TIFF."""
    (page,) = struct.unpack_from("<I", content, 4)
    (tags,) = struct.unpack_from("<H", content, page)
    places = [page + 2 + 12 * tag for tag in range(tags)]
    return next(place for place in places if struct.unpack_from("<H", content, place)[0] == code)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
def test_tiff_that_lacks_strips_is_not_filled_with_zeros(folder, options):
    path = folder / "strips.tif"
    tifffile.imwrite(path, np.ones((8, 5), "u1"), metadata=None, byteorder="<", rowsperstrip=2, **options)
    content = bytearray(path.read_bytes())
    for code in (273, 279):  # StripOffsets, StripByteCounts
        assert struct.unpack_from("<I", content, tag_at(content, code) + 4) == (4,)
        struct.pack_into("<I", content, tag_at(content, code) + 4, 3)
    path.write_bytes(content)
    refusal(read_image, path, "lacks some of its strips")


def test_tiff_cut_within_its_pixels_says_so(folder):
    path = folder / "cut.tif"
    tifffile.imwrite(path, np.ones((60, 50), "u1"), metadata=None)
    path.write_bytes(path.read_bytes()[:-10])
    refusal(read_image, path, "expected pixels up to byte", "truncated")


def test_tiff_page_that_tifffile_leaves_out_is_missed(folder):
    path = folder / "left_out.tif"
    tifffile.imwrite(path, np.ones((6, 5), "u1"), metadata=None, byteorder="<")
    content = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", content, 4)
    (tags,) = struct.unpack_from("<H", content, first)
    struct.pack_into("<I", content, first + 2 + 12 * tags, len(content))
    path.write_bytes(content + struct.pack("<H", 5000) + bytes(12 * 5000 + 4))
    with tifffile.TiffFile(path) as tiff:
        assert len(tiff.pages) == 1
    refusal(read_image, path, "1 of 2 pages")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2), "c8"),
        np.zeros((2, 2), [("r", "u1"), ("g", "u1")]),
        np.array([["a", "b"]]),
        np.zeros((2, 2), "M8[s]"),
        np.zeros(3),
        np.zeros((2, 2, 2, 2)),
        np.zeros((2, 0)),
        np.float64(3),
    ],
)
def test_npy_of_other_things_is_refused(folder, array):
    np.save(folder / "o.npy", array)
    refusal(read_image, folder / "o.npy")


def npy(header: str, version: int = 1, data: bytes = bytes(12)) -> bytes:
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + data


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<i2', 'fortran_order': False, 'shape': (2, 3), }   \n",
        "{'shape':(2,3),'fortran_order':False,'descr':'<i2'}",
        '{ "fortran_order" : False , "shape" : ( 2L , 3L ) , "descr" : "int16" }\n',
    ],
)
def test_npy_headers_of_other_writers_are_read(folder, header, version):
    (folder / "w.npy").write_bytes(npy(header, version, np.arange(6, dtype="<i2").tobytes()))
    assert_stored(read_image(folder / "w.npy"), np.arange(6, dtype="i2").reshape(2, 3))


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '<i2', 'fortran_order': False, 'shape': (2, 3), }", version=4),
        npy("{'descr': '<i2', 'fortran_order': False, 'shape': (2, 3), }").replace(b"Y\1", b"Y\4"),
        npy("{'descr': '<i2', 'fortran_order': False, 'shape': (2, 3), "),
        npy("{'descr': '<i2', 'fortran_order': False, 'shape': (2, 3), }}"),
        npy("{'descr': '<i2', 'fortran_order': False, 'shape': (2, -3), }"),
        npy("{'descr': '<i2', 'fortran_order': False, 'shape': (2 3), }"),
        npy("{'descr': '<i2', 'fortran_order': 0, 'shape': (2, 3), }"),
        npy("{'descr': 'iii', 'fortran_order': False, 'shape': (2, 3), }"),
        npy("{'descr': '(2,3)i2', 'fortran_order': False, 'shape': (2, 3), }"),
        npy("{'descr': '<i2', 'shape': (2, 3), }"),
        npy("{'descr': '<i2', 'fortran_order': False, 'shape': (2, 3), 'more': 1}"),
        npy(""),
        npy("{}"),
        npy("{'descr': '<i2', 'fortran_order': False, 'shape': (2, 3), }" + " " * 70_000, version=2),
        b"\x93NUMPY\x01",
        b"\x93NUMPY\x01\x00\xff\xff{",
    ],
)
def test_npy_headers_that_are_none_are_refused(folder, content):
    (folder / "w.npy").write_bytes(content)
    refusal(read_image, folder / "w.npy", "header", "numpy.save")


def test_npy_headers_are_read_in_many_threads_at_once(folder):
    """Python 3.11's own parser fails where the garbage collector, in the midst of it, lets another thread in."""
    np.save(folder / "t.npy", np.zeros((2, 3), np.int16))
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    collected = lambda phase, info: sum(range(2_000))  # noqa: E731 - long enough to be interrupted
    gc.callbacks.append(collected)
    sys.setswitchinterval(1e-5)
    gc.set_threshold(50)
    try:
        with ThreadPoolExecutor(3) as pool:
            for image in pool.map(read_image, [folder / "t.npy"] * 600):
                assert image.voxels.shape == (2, 3)
    finally:
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval)
        gc.callbacks.remove(collected)


def test_npy_with_objects_is_never_unpickled(folder):
    np.save(folder / "pickle.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    refusal(read_image, folder / "pickle.npy")


@pytest.mark.parametrize("kind", ["nii.gz", "nrrd", "mha"])
def test_sizes_beyond_what_the_compressed_bytes_can_hold_are_refused(folder, kind):
    array = np.zeros((300, 300, 300), "u1")
    path = folder / f"bomb.{kind}"
    if kind == "nii.gz":
        header = nifti_bytes(array[:1], dims=[2000, 2000, 2000])[:400]
        path.write_bytes(gzip.compress(header))
    elif kind == "nrrd":
        header = b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2000 2000 2000\nencoding: gzip\n\n"
        path.write_bytes(header + gzip.compress(bytes(100)))
    else:
        header = metaimage_bytes(array[:1], compressed=True, header_only=True)
        path.write_bytes(header.replace(b"DimSize = 300 300 1", b"DimSize = 3000 3000 3000") + zlib.compress(bytes(9)))
    refusal(read_image, path, "compressed bytes can hold")


def test_the_best_compressible_image_is_not_taken_for_a_bomb(folder):
    array = np.zeros((40, 512, 512), "i2")
    (folder / "flat.nii.gz").write_bytes(gzip.compress(nifti_bytes(array), 9))
    (folder / "flat.mha").write_bytes(metaimage_bytes(array, compressed=True))
    head = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 512 512 40\nendian: little\nencoding: bz2\n\n"
    (folder / "flat.nrrd").write_bytes(head + bz2.compress(array.tobytes()))
    for name in ("flat.nii.gz", "flat.mha", "flat.nrrd"):
        assert_stored(read_image(folder / name), array)


# --- any damage: the same image, or an ImageError --------------------------------------------------------------------


def samples() -> dict[str, bytes]:
    """One small file of each kind, by name."""
    rng = np.random.default_rng(7)
    array = rng.integers(-500, 500, (3, 6, 7)).astype("<i2")
    grey = rng.integers(0, 60000, (6, 7)).astype("u2")
    made = {
        "v1.nii": nifti_bytes(array),
        "v2.nii": nifti_bytes(array, version=2, order=">"),
        "v1.nii.gz": gzip.compress(nifti_bytes(array)),
        "v2.nii.gz": gzip.compress(nifti_bytes(array, version=2)),
        "q.nii": nifti_bytes(array, sform=None, qform=([0.1, 0.2, 0.3, 1.0, 2.0, 3.0], [1.0] * 8)),
        "raw.mha": metaimage_bytes(array),
        "zlib.mha": metaimage_bytes(array, compressed=True),
    }
    fields = "type: short\ndimension: 3\nspace: RAS\nsizes: 7 6 3\nendian: little\nspace origin: (1,2,3)\n"
    fields += "space directions: (1,0,0) (0,1,0) (0,0,2)\nkinds: domain domain domain\nSegment0_Name:=liver\n"
    for encoding, pack in (("raw", bytes), ("gzip", gzip.compress), ("bzip2", bz2.compress)):
        made[f"{encoding}.nrrd"] = f"NRRD0004\n{fields}encoding: {encoding}\n\n".encode() + pack(array.tobytes())
    layered = f"NRRD0004\n{fields}encoding: gzip\n\n".replace("dimension: 3", "dimension: 4")
    layered = layered.replace("sizes: 7 6 3", "sizes: 2 7 3 3").replace("kinds: ", "kinds: list ")
    layered = layered.replace("directions: ", "directions: none ").replace("liver", "liver\nSegment0_Layer:=1")
    made["two.seg.nrrd"] = layered.encode() + gzip.compress(array.tobytes())
    options = [("strips", {"rowsperstrip": 2}), ("zlib", {"compression": "zlib", "rowsperstrip": 2})]
    options += [
        ("ij", {"imagej": True, "metadata": {"axes": "ZYX"}}),
        ("big", {"bigtiff": True, "compression": "zlib", "tile": (16, 16)}),
    ]
    for name, option in options:
        tifffile.imwrite(buffer := io.BytesIO(), array, photometric="minisblack", **option)
        made[f"{name}.tif"] = buffer.getvalue()
    PillowImage.fromarray(grey).save(buffer := io.BytesIO(), "PNG")
    made["grey.png"] = buffer.getvalue()
    palette = PillowImage.fromarray((grey % 5).astype("u1"), "L").quantize(5)
    palette.save(buffer := io.BytesIO(), "PNG")
    made["palette.png"] = buffer.getvalue()
    np.save(buffer := io.BytesIO(), array)
    made["a.npy"] = buffer.getvalue()
    np.save(buffer := io.BytesIO(), np.asfortranarray(array.astype(">f8")))
    made["f.npy"] = buffer.getvalue()
    return made


SAMPLES = samples()


def outcome(path: Path, content: bytes):
    """Read a file both ways: its arrays and grid, or None where it was refused."""
    path.write_bytes(content)
    results = []
    for read in (read_image, read_ground_truth):
        try:
            got = read(path)
        except ImageError as error:
            assert path.name in str(error)  # noqa: PT017 - both outcomes are right here
            results.append(None)
            continue
        layers = got.layers if isinstance(got, GroundTruth) else (got.voxels,)
        assert all(layer.shape == got.grid.shape and 2 <= layer.ndim <= 3 and layer.size for layer in layers)
        results.append([layer.tolist() for layer in layers])
    return results


@pytest.mark.parametrize("name", SAMPLES)
def test_truncation_anywhere_gives_the_same_image_or_an_error(folder, name):
    content = SAMPLES[name]
    whole = outcome(folder / name, content)
    assert any(whole)
    step = max(1, len(content) // 120)
    lengths = {*range(1, min(len(content), 40)), *range(1, len(content), step), *range(len(content) - 20, len(content))}
    for length in sorted(lengths):
        for got, expected in zip(outcome(folder / name, content[:length]), whole, strict=True):
            assert got is None or got == expected, length
    assert outcome(folder / name, content[: len(content) // 2]) == [None, None]


@pytest.mark.parametrize("name", SAMPLES)
def test_bytes_flipped_anywhere_give_an_image_or_an_error(folder, name):
    content = SAMPLES[name]

    @settings(max_examples=int(os.environ.get("VOXRING_SOAK", "100")), deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.one_of(st.integers(0, min(len(content), 360) - 1), st.integers(0, len(content) - 1)),
                st.one_of(st.integers(0, 255), st.sampled_from(list(b"0123456789 .-:=\n\xff\x7f\x80"))),
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


@pytest.mark.parametrize("name", ["v1.nii.gz", "gzip.nrrd", "bzip2.nrrd", "zlib.mha", "grey.png"])
def test_a_checksum_catches_every_flipped_bit_of_the_voxels(folder, name):
    content = SAMPLES[name]
    whole = outcome(folder / name, content)
    magic = {"v1.nii.gz": b"\x1f\x8b", "gzip.nrrd": b"\x1f\x8b", "bzip2.nrrd": b"BZh", "zlib.mha": b"\x78\x9c"}
    start = content.index(magic.get(name, b"IDAT")) + (10 if name.endswith(("gz", "nrrd")) else 4)
    end = content.index(b"IEND") - 4 if name == "grey.png" else len(content)
    for at in range(start, end, 3):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        for got, expected in zip(outcome(folder / name, bytes(damaged)), whole, strict=True):
            assert got is None or got == expected, at


@pytest.mark.parametrize("name", [name for name in SAMPLES if not name.endswith(".gz")])
def test_bytes_after_the_image_change_nothing(folder, name):
    whole = outcome(folder / name, SAMPLES[name])
    if name not in ("gzip.nrrd", "two.seg.nrrd"):
        assert outcome(folder / name, SAMPLES[name] + b"trailing") == whole


# --- cost ------------------------------------------------------------------------------------------------------------


def test_importing_the_package_imports_no_library_of_a_format():
    code = "import sys, voxring.images; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"nibabel", "tifffile", "PIL", "nrrd", "isal", "SimpleITK", "pydicom"} & set(done.stdout.split())


def test_reading_leaves_no_file_open(folder):
    def opened():
        return set(os.listdir("/proc/self/fd")) if sys.platform == "linux" else set()

    before = opened()
    for name, content in SAMPLES.items():
        (folder / name).write_bytes(content)
        with contextlib.suppress(ImageError):
            read_image(folder / name)
        (folder / name).write_bytes(content[: len(content) // 2])
        refusal(read_image, folder / name)
    assert opened() == before
