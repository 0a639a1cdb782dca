"""Whole slides and other large 2D images: read by their tiles, reduced in blocks, never whole in memory."""

import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import tifffile

import naive
from test_class_statistics import expected as sums_of_the_definition
from test_classify import hospital, trained
from test_classify import study as a_model_study
from voxring import (
    ImageError,
    Study,
    engine,
    local_landmarks,
    local_mean,
    local_totals,
    local_variance,
    read_ground_truth,
    read_image,
)
from voxring.batch import blocks, image_totals
from voxring.batch.manifest import Row
from voxring.cli.preflight import _look
from voxring.images import open_ground_truth, open_image, rectangles, source, together
from voxring.scan import scan

BORDERS = ("reflect", "mirror", "nearest", "constant", "clip")
WAYS = {
    "mapped": {},
    "tiles": {"tile": (16, 32)},
    "zlib tiles": {"tile": (32, 16), "compression": "zlib", "predictor": 2},
    "strips": {"rowsperstrip": 5, "compression": "zlib"},
    "one strip": {"compression": "zlib"},
    "big-endian": {"tile": (16, 16), "byteorder": ">", "bigtiff": True},
}
CLASSES = {"a": 1, "b": 2, "c": 0}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(rectangles, "SIDE", 16)


def study_of(window=3, border="reflect", method="none", classes=None, **standardise):
    return Study.of(
        name="slides",
        classes=classes or {"a": 1, "b": 2},
        window={"size": window, "border": border, **({"fill": 0.5} if border == "constant" else {})},
        standardise={"method": method, **standardise},
    )


def row_of(folder, image, truth, image_way="tiles", truth_way="strips"):
    return Row(1, saved(folder / "slide", image, image_way), saved(folder / "slide_seg", truth, truth_way), "")


def saved(stem, array, way):
    if way == "npy":
        np.save(path := stem.with_suffix(".npy"), array)
        return path
    options = {key: value for key, value in WAYS[way].items() if key != "predictor" or array.dtype.kind != "f"}
    tifffile.imwrite(path := stem.with_suffix(".tif"), array, photometric="minisblack", metadata=None, **options)
    return path


def labelled(rng, shape, share=0.02):
    truth = rng.integers(1, 3, shape).astype(np.uint8)
    truth[rng.random(shape) > share] = 0
    return truth


METHODS = [
    {"method": "none"},
    {"method": "rescale", "range": [20.0, 200.0]},
    {"method": "zscore"},
    {"method": "percentile", "percentiles": [1.0, 99.0]},
    {"method": "nyul", "percentiles": [1.0, 50.0, 99.0], "landmarks": [0.0, 40.0, 100.0]},
]


@pytest.mark.parametrize("border", BORDERS)
def test_blocks_give_the_integers_of_the_whole_image(tmp_path, small_blocks, border):
    """Odd and even windows up to past the image, any standardisation, type, and layout of either file."""
    rng = np.random.default_rng(BORDERS.index(border))

    def one_of(choices):
        return choices[rng.integers(len(choices))]

    for _ in range(12):
        shape = one_of([(70, 5), (5, 70), (45, 50), (33, 64), (17, 16)])
        dtype = np.dtype(one_of(["u1", "u2", "i2", "i4", "f4"]))
        image = (rng.integers(0, 250, shape) if dtype.kind != "f" else rng.random(shape) * 250).astype(dtype)
        classes = {name: CLASSES[name] for name in one_of(["ab", "abc", "b"])}
        window = one_of([1, 2, 3, 4, 7, (1, 6), (8, 1), *([33, 64, 100] if border != "clip" else [])])
        study = study_of(window, border, classes=classes, **one_of(METHODS))
        truth = labelled(rng, shape, one_of([0.002, 0.02, 0.5, 1]))
        row = row_of(tmp_path, image, truth, one_of([*WAYS, "npy"]), one_of([*WAYS, "npy"]))
        assert image_totals(row, study) == local_totals(image, truth, study), (shape, dtype, study)


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
def test_landmarks_of_blocks_are_those_of_the_whole_image(tmp_path, small_blocks, dtype):
    rng = np.random.default_rng(9)
    image = rng.integers(0, 250, (45, 50)).astype(dtype)
    study = study_of(method="nyul", percentiles=[1.0, 20.0, 50.0, 99.0], landmarks="agree")
    row = row_of(tmp_path, image, labelled(rng, image.shape))
    assert image_totals(row, study) == local_landmarks(image, study)
    bad = row_of(tmp_path, np.ones((45, 50), dtype), labelled(rng, image.shape))
    refused("slide.tif: the foreground is empty", image_totals, bad, study)


def test_preflight_looks_at_a_slide_in_blocks(tmp_path, small_blocks):
    image = np.zeros((64, 80), np.uint16)
    truth = np.zeros(image.shape, np.uint8)
    truth[60, 70] = 2
    row = row_of(tmp_path, image, truth)
    looked = _look(row, study_of(classes=CLASSES | {"c": 300}))
    assert looked.classes == ("b",)
    assert looked.memory <= image.nbytes / 2


@pytest.mark.parametrize("border", BORDERS)
def test_a_label_at_the_edge_has_its_whole_window_read(tmp_path, small_blocks, border):
    image = np.random.default_rng(5).integers(0, 250, (40, 20), np.uint8)
    for row, window in product((0, 1, 15, 16, 38, 39), (2, 5, 8, 30)):
        truth = np.zeros(image.shape, np.uint8)
        truth[row, row // 2] = 1
        study = study_of(window if border != "clip" else min(window, 8), border)
        assert image_totals(row_of(tmp_path, image, truth), study) == local_totals(image, truth, study)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("window", [4, (5, 2)])
def test_blocks_meet_the_definition(tmp_path, small_blocks, border, window):
    rng = np.random.default_rng(3)
    image, truth = rng.integers(0, 250, (40, 37), np.uint8), labelled(rng, (40, 37), 0.1)
    study = study_of(window, border, "zscore")
    totals = image_totals(row_of(tmp_path, image, truth), study)
    options = {"method": "zscore"}
    expected = naive.algorithm_1(
        [[(image, truth)]], study.classes, window, border, fill=study.window.fill, options=options
    )
    for name, (n, total, *_) in expected.items():
        assert (totals[name].voxels, Fraction(totals[name].sum, study.denominator)) == (n, total)


def test_no_more_of_a_slide_is_read_than_windows_over_its_ground_truth_reach(tmp_path, small_blocks, monkeypatch):
    image = np.arange(64 * 96, dtype=np.uint16).reshape(64, 96)
    truth = np.zeros(image.shape, np.uint8)
    truth[20:22, 40] = 1
    row = row_of(tmp_path, image, truth)
    monkeypatch.setattr(source, "_GAP", -1)
    read = []
    from voxring.images.tiff import Page

    kept = Page.read_block
    monkeypatch.setattr(Page, "read_block", lambda page, *block: read.append((page.path, block)) or kept(page, *block))
    totals, sources, _ = blocks.totals_in_blocks(
        open_image(row.image), open_ground_truth(row.ground_truth), study_of(5)
    )
    assert [block for path, block in read if path == row.image] == [((18, 24), (38, 43))]
    assert totals["a"].voxels == 2
    with tifffile.TiffFile(row.image) as tiff:
        offsets = tiff.pages[0].dataoffsets
        lengths = tiff.pages[0].databytecounts
    tile = 1 * 3 + 1
    (mine,) = sources
    assert (offsets[tile], offsets[tile] + lengths[tile]) in mine.ranges
    truth[:] = 0
    read.clear()
    image_totals(row_of(tmp_path, image, truth), study_of(5, method="zscore"))
    assert [path for path, _ in read if path == row.image] == []


def test_all_that_a_slides_totals_depend_on_is_recorded(tmp_path, small_blocks, monkeypatch):
    monkeypatch.setattr(source, "_GAP", -1)
    image = np.arange(64 * 96, dtype=np.uint16).reshape(64, 96)
    truth = np.zeros(image.shape, np.uint8)
    agreeing = study_of(method="nyul", percentiles=[1.0, 50.0, 99.0], landmarks="agree")
    for label, study, tiles in ((0, study_of(), 0), (1, study_of(method="zscore"), 12), (1, agreeing, 12)):
        truth[20, 40] = label
        row = row_of(tmp_path, image, truth)
        found = blocks.totals_in_blocks(open_image(row.image), open_ground_truth(row.ground_truth), study)[1:]
        for path, sources, wanted in zip((row.image, row.ground_truth), found, (tiles, 13), strict=True):
            with tifffile.TiffFile(path) as tiff:
                page = tiff.pages[0]
                places = [*zip(page.dataoffsets, page.databytecounts, strict=True), (page.offset, 8)]
            (one,) = sources
            known = [any(a <= at and at + size <= b for a, b in one.ranges) for at, size in places]
            assert (sum(known[:-1]), known[-1]) == (wanted, True)


def test_the_landmarks_pass_looks_for_the_classes_too(tmp_path, small_blocks):
    image = np.arange(64 * 96, dtype=np.uint16).reshape(64, 96)
    row = row_of(tmp_path, image, np.ones(image.shape, np.uint8))
    study = study_of(method="nyul", percentiles=[1.0, 50.0, 99.0], landmarks="agree", classes={"a": "lesion"})
    refused('asked for segment "lesion", but the file names none', image_totals, row, study)


def test_a_journal_knows_a_slide_again_by_its_tiles(tmp_path):
    """What is between is another's: a label that is painted elsewhere leaves the tiles of the image alone."""
    here = source.Source(tmp_path, (1, 2, 3, 4), ((0, 10), (5_000_000, 5_000_100)))
    there = source.Source(tmp_path, (1, 2, 3, 4), ((5_000_050, 5_000_200), (10, 20)))
    other = source.Source(tmp_path, (9, 2, 3, 4), ((7, 8),))
    joined = source.Source(tmp_path, (1, 2, 3, 4), ((0, 20), (5_000_000, 5_000_200)))
    assert together([here, other, there]) == (joined, other)


def test_the_finest_level_of_a_pyramid_is_the_image(tmp_path):
    image = np.random.default_rng(1).integers(0, 255, (64, 80), np.uint8)
    options = {"tile": (16, 16), "compression": "zlib", "metadata": None, "photometric": "minisblack"}
    with tifffile.TiffWriter(tmp_path / "marked.tif") as writer:
        writer.write(image, **options)
        writer.write(image[::2, ::2], subfiletype=1, **options)
    with tifffile.TiffWriter(tmp_path / "sub.ome.tif") as writer:
        writer.write(image, subifds=1, **{**options, "metadata": {"axes": "YX"}})
        writer.write(image[::2, ::2], subfiletype=1, **options)
    with tifffile.TiffWriter(tmp_path / "aperio.svs") as writer:
        writer.write(image, description="Aperio Image Library v12", **options)
        writer.write(image[::4, ::4], **{**options, "tile": None})
        writer.write(image[::2, ::2], **options)
    for name in ("marked.tif", "sub.ome.tif", "aperio.svs"):
        assert np.array_equal(read_image(tmp_path / name).voxels, image), name
        assert np.array_equal(open_image(tmp_path / name).read_block((3, 40), (17, 80)).voxels, image[3:40, 17:80])
        assert open_image(tmp_path / name).block == (16, 16)


def test_pages_are_planes_unless_they_are_marked_as_levels(tmp_path):
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    path = tmp_path / "pages.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, photometric="minisblack", metadata=None)
        writer.write(image[::2, ::2], photometric="minisblack", metadata=None)
    refused("one size", read_image, path)
    with tifffile.TiffWriter(path) as writer:
        writer.write(image[::2, ::2], photometric="minisblack", metadata=None)
        writer.write(image, photometric="minisblack", metadata=None, subfiletype=1)
    refused("finest level of a pyramid first", read_image, path)
    with tifffile.TiffWriter(path) as writer:
        for _ in range(3):
            writer.write(image, photometric="minisblack", metadata=None, subfiletype=1)
    assert read_image(path).voxels.shape == (3, 8, 8)


def refused(message, function, *arguments, **options):
    with pytest.raises(ImageError, match=message):
        function(*arguments, **options)


RGB = np.random.default_rng(2).integers(0, 256, (48, 64, 3), np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_colour_is_the_intensity_that_the_study_says(tmp_path, dtype):
    pixels = RGB.astype(dtype) * (257 if dtype == np.uint16 else 1)
    tifffile.imwrite(tmp_path / "rgb.tif", pixels, tile=(16, 32), photometric="rgb", compression="zlib")
    for channel, name in enumerate(("red", "green", "blue")):
        assert np.array_equal(read_image(tmp_path / "rgb.tif", name).voxels, pixels[..., channel])
    grey = [[round_half_up(299 * int(r) + 587 * int(g) + 114 * int(b), 1000) for r, g, b in row] for row in pixels]
    found = read_image(tmp_path / "rgb.tif", "luminance").voxels
    assert (found.tolist(), found.dtype) == (grey, dtype)
    refused("colour = .luminance", read_image, tmp_path / "rgb.tif")
    refused("colour = .luminance", read_ground_truth, tmp_path / "rgb.tif")
    truth = labelled(np.random.default_rng(3), pixels.shape[:2], 0.1)
    row = Row(1, tmp_path / "rgb.tif", saved(tmp_path / "seg", truth, "tiles"), "")
    study = study_of(colour="luminance")
    assert image_totals(row, study) == local_totals(np.array(grey, dtype), truth, study)
    refused("colour = .luminance", image_totals, row, study_of())


def round_half_up(numerator, denominator):
    return (2 * numerator + denominator) // (2 * denominator)


def test_a_study_that_says_nothing_of_colour_keeps_its_digest():
    assert b"colour" not in study_of().canonical()
    assert study_of(colour="red").digest != study_of(colour="green").digest != study_of().digest
    with pytest.raises(Exception, match=r"standardise\.colour"):
        study_of(colour="grey")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"planarconfig": "separate"}, "side by side"),
        ({"photometric": "ycbcr"}, "side by side"),
        ({"extrasamples": ["unassalpha"]}, "side by side"),
    ],
)
def test_colours_that_are_kept_otherwise_are_refused(tmp_path, options, message):
    pixels = RGB
    if "extrasamples" in options:
        pixels = np.concatenate((RGB, RGB[..., :1]), axis=2)
    if "planarconfig" in options:
        pixels = np.ascontiguousarray(np.moveaxis(RGB, 2, 0))
    tifffile.imwrite(tmp_path / "a.tif", pixels, **{"photometric": "rgb", **options})
    refused(message, read_image, tmp_path / "a.tif", "red")


def test_openslide_and_tifffile_read_the_same_pixels(tmp_path, small_blocks):
    pytest.importorskip("openslide")
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, RGB, tile=(16, 16), photometric="rgb", compression="jpeg", metadata=None)
    other = tmp_path / "slide.ndpi"
    other.write_bytes(path.read_bytes())
    for colour in ("luminance", "red", "green", "blue"):
        assert np.array_equal(read_image(other, colour).voxels, read_image(path, colour).voxels)
    assert np.array_equal(
        open_image(other, "red").read_block((5, 40), (7, 60)).voxels, open_image(path, "red").read().voxels[5:40, 7:60]
    )
    truth = saved(tmp_path / "seg", labelled(np.random.default_rng(3), RGB.shape[:2], 0.1), "tiles")
    study = study_of(4, colour="luminance")
    assert image_totals(Row(1, other, truth, ""), study) == image_totals(Row(1, path, truth, ""), study)
    refused("colour = .luminance", read_image, other)
    other.write_bytes(b"nothing")
    refused("expected a slide that OpenSlide reads", read_image, other, "red")


def test_a_slide_without_openslide_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)
    (tmp_path / "a.mrxs").write_bytes(b"x")
    refused(r"voxring\[slides\]", read_image, tmp_path / "a.mrxs", "red")


@pytest.fixture
def small_pieces(monkeypatch, small_blocks):
    monkeypatch.setattr(blocks, "SLAB", 500)  # 9 by 9 pixels with five maps


FEATURES = [
    {"kind": "intensity"},
    {"kind": "gradient"},
    {"kind": "mean", "window": [5, 2]},
    {"kind": "std", "window": 4},
    {"kind": "variance", "window": [1, 20]},
]
BINS = {"range": [20.0, 200.0]}


def additive_study(border="reflect", window=3, glcm=None, **tables):
    return Study.of(
        name="slides",
        window={"size": window, "border": border, **({"fill": 0.5} if border == "constant" else {})},
        feature=FEATURES,
        statistics={
            "gram": True,
            "moments": 4,
            "histogram": {"bins": 5, **BINS},
            "glcm": {"levels": 4, **BINS, **(glcm or {})},
        },
        **{"classes": {"a": 1, "b": 2}} | tables,
    )


@pytest.mark.parametrize("border", BORDERS)
def test_additive_statistics_of_blocks_are_those_of_the_whole_image(tmp_path, small_pieces, border):
    """Pairs lie across borders of pieces and blocks, beside and below, and further than a block."""
    at, ways = BORDERS.index(border), [*WAYS, "npy"]
    rng = np.random.default_rng(20 + at)
    for number, distance in list(enumerate((1, 2, 6, 17, 40, 3)))[at % 2 :: 2]:
        shape, share = [(37, 34), (70, 9), (17, 64)][number % 3], [1, 0.5, 0.02][number % 3]
        image = rng.integers(0, 250, shape).astype([np.uint8, np.int16][number % 2])
        truth = labelled(rng, shape, share)
        method = METHODS[(number + at) % len(METHODS)]
        study = additive_study(border, glcm={"distance": distance}, standardise={"fraction_bits": 8, **method})
        row = row_of(tmp_path, image, truth, ways[rng.integers(len(ways))], ways[rng.integers(len(ways))])
        found = image_totals(row, study)
        assert found == local_totals(image, truth, study), (shape, distance, method)
        assert sum(found["a"].statistics[-16:]) > 0 or share == 0.02


def test_additive_statistics_of_blocks_meet_the_definition(tmp_path, small_pieces):
    rng = np.random.default_rng(4)
    image, truth = rng.integers(0, 250, (19, 18), np.uint8), labelled(rng, (19, 18), 0.7)
    study = additive_study("nearest", glcm={"distance": 2}, standardise={"fraction_bits": 4})
    found = image_totals(row_of(tmp_path, image, truth), study)
    for name, label in study.classes.items():
        assert found[name].statistics == sums_of_the_definition(image, truth, study, label)


def test_a_class_that_is_label_0_makes_pairs_across_blocks_too(tmp_path, small_pieces):
    rng = np.random.default_rng(6)
    image, truth = rng.integers(0, 250, (40, 30), np.uint8), labelled(rng, (40, 30), 0.3)
    study = additive_study(classes=CLASSES, glcm={"distance": 3})
    assert image_totals(row_of(tmp_path, image, truth), study) == local_totals(image, truth, study)


NONE, ZSCORE = {"method": "none"}, {"method": "zscore"}
OTHERS = [{"method": "percentile", "percentiles": [5.0, 95.0]}, {"method": "zscore", "foreground": "all"}]


def evaluating(folder, own, models, bound=2**16):
    """A study that evaluates a model, each with its standardisation, and the model with a bound on intensities."""
    model = trained(a_model_study(standardise=models, bounds={"intensity": bound}))
    model.save(folder / "model.json")
    return Study.of(
        name="slides",
        classes={"fat": 3, "bone": 9, "air": 7},
        window={"size": 3},
        standardise=own,
        bounds={"intensity": 2**16},
        evaluate={"model": str(folder / "model.json"), "digest": model.digest, "bins": 16},
    )


@pytest.mark.parametrize(
    ("own", "models", "passes"),
    [(NONE, ZSCORE, 1), (ZSCORE, NONE, 1), (ZSCORE, ZSCORE, 1), *((ZSCORE, other, 2) for other in OTHERS)],
)
def test_a_model_is_evaluated_in_parts_as_on_the_whole_image(tmp_path, small_pieces, monkeypatch, own, models, passes):
    """Each goes once through all voxels if its standardisation needs it, and both together if it is the same."""
    study = evaluating(tmp_path, own, models)
    looks, counted = [], engine.scaling_of
    monkeypatch.setattr(engine, "scaling_of", lambda *given, **more: looks.append(1) or counted(*given, **more))
    for shape in [(45, 50), (12, 12, 11)] if own != NONE else [(45, 50)]:
        image, truth = hospital(20, shape)
        truth[-3:, :2] = 7
        row = row_of(tmp_path, image, truth, *(["npy", "npy"] if len(shape) == 3 else []))
        looks.clear()
        found = image_totals(row, study)
        assert len(looks) == passes
        assert found == local_totals(image, truth, study)
        assert sum(found["fat"].statistics) > found["fat"].voxels > 0


def test_a_models_own_bound_holds_for_parts_of_images(tmp_path, small_pieces):
    study = evaluating(tmp_path, ZSCORE, ZSCORE, bound=9)
    image, truth = hospital(20, (45, 50))
    image_totals(row_of(tmp_path, image, truth), study)
    image[40, 40] = 9999  # 20 deviations; the study itself would take it
    row = row_of(tmp_path, image, truth)
    refused("the study allows 9 either way", image_totals, row, study)


def test_two_sizes_are_refused_before_a_pixel_is_read(tmp_path, small_blocks):
    row = row_of(tmp_path, np.zeros((40, 40), np.uint8), np.ones((40, 41), np.uint8))
    refused("does not lie on the grid", image_totals, row, study_of())


def test_a_damaged_tile_is_an_error_only_where_it_is_needed(tmp_path, small_blocks):
    image = np.random.default_rng(4).integers(0, 255, (64, 64), np.uint8)
    truth = np.zeros(image.shape, np.uint8)
    truth[2, 2] = 1
    row = row_of(tmp_path, image, truth, "zlib tiles")
    before = image_totals(row, study_of())
    with tifffile.TiffFile(row.image) as tiff:
        at = tiff.pages[0].dataoffsets[-1]
    with row.image.open("r+b") as file:
        file.seek(at)
        file.write(b"\0" * 20)
    assert image_totals(row, study_of()) == before
    refused("damaged", image_totals, row, study_of(method="zscore"))


def test_values_beyond_the_bound_are_refused_wherever_they_are(tmp_path, small_blocks):
    image = np.zeros((64, 64), np.int16)
    image[60, 60] = 300
    truth = np.zeros(image.shape, np.uint8)
    truth[2, 2] = 1
    study = Study.of(name="x", classes={"a": 1}, window={"size": 3}, bounds={"intensity": 100})
    row = row_of(tmp_path, image, truth)
    refused("slide.tif: standardised values run from 0 to 300", image_totals, row, study)
    image[60, 60] = 100
    assert image_totals(row_of(tmp_path, image, truth), study)["a"].voxels == 1


def test_scan_pairs_slides(tmp_path):
    for name in ("a.svs", "a_mask.tif", "b.tiff", "b_seg.ome.tif", "c.ndpi", "c_labels.tif", "d.ome.tif", "d_seg.npy"):
        (tmp_path / name).touch()
    found = scan(tmp_path)
    assert [(pair.image.name, pair.ground_truth.name) for pair in found.pairs] == [
        ("a.svs", "a_mask.tif"),
        ("b.tiff", "b_seg.ome.tif"),
        ("c.ndpi", "c_labels.tif"),
        ("d.ome.tif", "d_seg.npy"),
    ]


@pytest.mark.parametrize("border", BORDERS)
def test_maps_of_a_file_are_those_of_its_array(tmp_path, small_blocks, border):
    rng = np.random.default_rng(6)
    for dtype, window, way in product((np.uint8, np.float32), ((3, 4), 24), ("tiles", "strips", "npy")):
        image = rng.integers(0, 200, (45, 50)).astype(dtype) / (3 if dtype == np.float32 else 1)
        image = image.astype(dtype)
        file = open_image(saved(tmp_path / "image", image, way))
        for function in (local_mean, local_variance):
            expected = function(np.stack((image, image)), (1, *np.broadcast_to(window, 2).tolist()), border)[0]
            out = np.empty(image.shape)
            assert function(file, window, border, out=out) is out
            assert np.array_equal(out, expected)
            assert np.array_equal(function(image, window, border), expected)
            assert function(file, window, border, dtype="float32").dtype == np.float32
    sums, _ = local_mean(file, 3, border, exact=True)
    assert np.array_equal(sums, local_mean(image, 3, border, exact=True)[0])
    volume = open_image(saved(tmp_path / "volume", np.arange(60.0).reshape(3, 4, 5), "npy"))
    assert np.array_equal(local_mean(volume, 3), local_mean(volume.read().voxels, 3))


def write_sparse(path, side, tiles, value, tile=256):
    """A BigTIFF of compressed tiles of one value, but for those given."""
    across = side // tile
    rest = zlib.compress(np.full((tile, tile), value, np.uint8).tobytes(), 1)
    with path.open("wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        offsets, lengths = [], []
        for index in range(across * across):
            data = zlib.compress(tiles[divmod(index, across)].tobytes(), 1) if divmod(index, across) in tiles else rest
            offsets.append(file.tell())
            lengths.append(file.write(data))
        counts_at = file.tell()
        file.write(struct.pack(f"<{len(offsets)}Q", *offsets))
        lengths_at = file.tell()
        file.write(struct.pack(f"<{len(offsets)}Q", *lengths))
        ifd = file.tell()
        number = len(offsets)
        tags = [
            (256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1),
            (322, 4, 1, tile), (323, 4, 1, tile), (324, 16, number, counts_at), (325, 16, number, lengths_at),
        ]  # fmt: skip
        file.write(struct.pack("<Q", len(tags)))
        for tag in tags:
            file.write(struct.pack("<HHQQ", *tag))
        file.write(struct.pack("<Q", 0))
        file.seek(8)
        file.write(struct.pack("<Q", ifd))


BOUNDED = """
import resource, sys
from pathlib import Path
import numpy as np
from voxring import Study, local_totals
from voxring.batch import image_totals
from voxring.batch.manifest import Row
from voxring.cli.preflight import _look

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

for method in sys.argv[3:]:
    study = Study.of(name="s", classes={"a": 1}, window={"size": 15}, standardise={"method": method})
    image = np.arange(400, dtype=np.uint8).reshape(20, 20)
    local_totals(image, np.ones_like(image), study, threads=1)  # what a process needs without an image
    before = peak()
    totals = image_totals(Row(1, Path(sys.argv[1]), Path(sys.argv[2]), ""), study, threads=1)["a"]
    print(totals.voxels, totals.sum, totals.total, totals.squares, (peak() - before) >> 10)
"""


def test_a_slide_of_20480_by_20480_takes_the_memory_of_a_block(tmp_path):
    """420 MB of pixels in each of two files of 2 MB; bench/huge.py goes through 10 GB."""
    rng = np.random.default_rng(8)
    side, at = 20_480, (39, 51)
    places = [at, (at[0], at[1] + 1), (at[0] + 1, at[1])]
    image = {place: rng.integers(0, 255, (256, 256), np.uint8) for place in places}
    truth = {at: (rng.random((256, 256)) < 0.2).astype(np.uint8), (79, 79): np.ones((256, 256), np.uint8)}
    write_sparse(tmp_path / "slide.tif", side, image, 7)
    write_sparse(tmp_path / "seg.tif", side, truth, 0)
    command = [sys.executable, "-c", BOUNDED, tmp_path / "slide.tif", tmp_path / "seg.tif", "none"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *totals, grown = map(int, done.stdout.split())
    near = np.full((768, 768), 7, np.uint8)
    for (y, x), pixels in image.items():
        top, left = 256 * (y - at[0] + 1), 256 * (x - at[1] + 1)
        near[top : top + 256, left : left + 256] = pixels
    labels = np.zeros_like(near)
    labels[256:512, 256:512] = truth[at]
    study = study_of(15, classes={"a": 1})
    flat = np.full((256, 256), 7, np.uint8)
    expected = (local_totals(near, labels, study) + local_totals(flat, np.ones_like(flat), study))["a"]
    assert totals == [expected.voxels, expected.sum, expected.total, expected.squares]
    assert grown < 256  # MiB


def test_the_variance_of_floats_is_in_their_units_squared():
    halves = np.array([[0.5, 1.0, 2.0]])
    whole = local_variance((2 * halves).astype(np.int16), (1, 3), "clip")
    assert np.array_equal(local_variance(halves, (1, 3), "clip"), whole / 4)
