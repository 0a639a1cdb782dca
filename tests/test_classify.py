"""New images: maps written for them, and evaluation, against the model applied to the whole image at once."""

import csv
import json
from fractions import Fraction

import nrrd
import numpy as np
import pytest

from test_cli import run
from test_images import OBLIQUE, nifti_bytes
from voxring.batch import Row, image_totals
from voxring.classify import classify_image, evaluate_image, image_stem, slabs
from voxring.devices import device_name
from voxring.errors import ImageError, StudyError
from voxring.evaluate import Counts, document
from voxring.features import feature_maps
from voxring.images import Segment, open_image, read_ground_truth, read_image
from voxring.kernels.cpu.classify import floats
from voxring.learn import Model, Moments
from voxring.study import Study

FEATURES = [{"kind": "intensity"}, {"kind": "mean", "window": 3}, {"kind": "std", "window": 3}, {"kind": "gradient"}]
CLASSES = {"fat": 3, "liver / left": 5, "bone": 9}
SHAPE = (7, 12, 11)


def hospital(seed, shape=SHAPE):
    """An image of three tissues, and its ground truth with voxels of none."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, [-(-n // 3) for n in shape])
    for axis in range(len(shape)):
        kind = kind.repeat(3, axis)
    kind = kind[tuple(slice(n) for n in shape)]
    image = np.array([-800, -100, 60, 400])[kind] + rng.normal(0, 90, shape)
    return image.astype(np.int16), np.array([0, 3, 5, 9], np.uint8)[kind]


def study(**tables):
    return Study.of(
        name="t",
        classes=CLASSES,
        feature=FEATURES,
        **({"standardise": {"method": "zscore", "foreground": "all"}, "window": {"size": 3}} | tables),
    )


def trained(of=None, classifier="lda", **settings):
    of = study() if of is None else of
    rows, labels = [], []
    for seed in (1, 2):
        image, truth = hospital(seed)
        maps = np.stack(feature_maps(image, of), -1)
        rows.append(maps[truth > 0] / of.unit)
        labels.append(truth[truth > 0])
    names = [feature.label for feature in of.feature]
    moments = Moments.of_arrays(np.concatenate(rows), np.concatenate(labels), names=names)
    return Model.of(of, moments, classifier, **settings)


@pytest.fixture(scope="module")
def model():
    return trained()


def write(folder, array, name="ct.nii", **how):
    (folder / name).write_bytes(nifti_bytes(array, **how))
    return folder / name


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_planes_are_classified_in_parts_by_threads_as_at_once(model, monkeypatch, workers):
    image, _ = hospital(8)
    labels, chances = model.classify(feature_maps(image, model.study))
    for values in (4 * 12 * 11 * 2, 1, 1 << 22):  # of two planes, one, and all
        monkeypatch.setattr("voxring.features.SLAB", values)
        stack = model.stack(image)
        stack.workers = workers  # which small images do not get
        for first, stop in ((0, 7), (2, 7), (6, 7)):
            made = model.classify_planes(stack, (first, stop), probabilities=True)
            assert np.array_equal(made[0], labels[first:stop])
            assert np.array_equal(made[1], chances[:, first:stop])
        alone = model.classify_planes(stack, (0, 7), probabilities=False)
        assert np.array_equal(alone[0], labels)
        assert alone[1].size == 0


def test_maps_of_other_integers_are_classified_alike(model):
    maps = feature_maps(hospital(8)[0], model.study)
    narrow = [one.astype(np.int32) for one in maps]
    for one, other in zip(model.classify(narrow), model.classify(maps), strict=True):
        assert np.array_equal(one, other)
    wide = np.random.default_rng(1).integers(-(1 << 63), (1 << 63) - 1, 1000)
    out = np.empty(1000)
    floats(out, wide, 1000)
    assert np.array_equal(out, wide.astype(np.float64))


@pytest.mark.parametrize("method", ["none", "zscore"])
@pytest.mark.parametrize("voxels", [1, 300, 10**6])
def test_slabs_together_are_the_image_at_once(tmp_path, voxels, method):
    of = trained(study(standardise={"method": method} | ({"foreground": "all"} if method == "zscore" else {})))
    image, _ = hospital(3)
    made = list(slabs(open_image(write(tmp_path, image)), of, probabilities=True, voxels=voxels))
    labels, chances = of.classify(feature_maps(image, of.study))
    assert np.array_equal(np.concatenate([slab.labels for slab in made]), labels)
    assert np.array_equal(np.concatenate([slab.probabilities for slab in made], 1), chances)
    assert made[0].first == 0
    assert made[-1].stop == 7
    assert [slab.stop for slab in made[:-1]] == [slab.first for slab in made[1:]]
    assert len(made) == {1: 7, 300: 4, 10**6: 1}[voxels]
    assert set(np.unique(labels)) == {3, 5, 9}


@pytest.mark.parametrize("border", ["reflect", "mirror", "clip"])
@pytest.mark.parametrize(("method", "dtype"), [("none", np.int16), ("zscore", np.int16), ("zscore", np.float32)])
def test_bands_of_rows_together_are_the_image_at_once(tmp_path, monkeypatch, border, method, dtype):
    kinds = [*FEATURES, {"kind": "mean", "window": 6}]
    tables = {"window": {"size": 3, "border": border}, "standardise": {"method": method}}
    of = trained(Study.of(name="t", classes=CLASSES, feature=kinds, **tables))
    image, truth = hospital(3, (23, 11))
    image = image.astype(dtype)
    path, mask = tmp_path / "ct.npy", tmp_path / "truth.npy"
    np.save(path, image)
    np.save(mask, truth)
    labels, chances = of.classify(feature_maps(image, of.study))
    counts = evaluate_image(path, mask, of)
    for voxels in (1, 50, 10**6):
        made = list(slabs(open_image(path), of, probabilities=True, voxels=voxels))
        assert np.array_equal(np.concatenate([band.labels for band in made]), labels)
        assert np.array_equal(np.concatenate([band.probabilities for band in made], 1), chances)
        assert [band.first for band in made] == list(range(0, 23, {1: 1, 50: 4}.get(voxels, 23)))
    monkeypatch.setitem(slabs.__kwdefaults__, "voxels", 50)
    assert evaluate_image(path, mask, of) == counts
    written = classify_image(path, of, tmp_path, probabilities=True)
    for one, expected in zip(written, (labels, *chances), strict=True):
        assert np.array_equal(np.load(one), expected)


def test_maps_are_written_with_the_images_slope_applied(tmp_path):
    model = trained(study(standardise={"method": "none"}))  # zscore would undo a slope
    image, _ = hospital(4)
    path = write(tmp_path, image, slope=0.5, inter=-1024.0)
    written = classify_image(path, model, tmp_path, probabilities=True)
    names = ["ct_labels.nii", "ct_p3_fat.nii", "ct_p5_liver-left.nii", "ct_p9_bone.nii"]
    assert [one.name for one in written] == names
    maps = feature_maps(image, model.study, slope=0.5, intercept=-1024)
    labels, chances = model.classify(maps)
    got = read_image(written[0])
    assert got.voxels.dtype == np.uint8
    assert np.array_equal(got.voxels, labels)
    assert np.array_equal(got.grid.affine, open_image(path).grid.affine)
    for one, chance in zip(written[1:], chances, strict=True):
        got = read_image(one)
        assert got.voxels.dtype == np.float32
        assert np.array_equal(got.voxels, chance)


def test_an_image_in_2d_and_a_nrrd_with_its_names(tmp_path):
    of = trained(study(window={"size": [1, 3, 3]}))
    flat = trained(Study.of(name="t", classes=CLASSES, feature=[{"kind": "intensity"}], standardise={"method": "none"}))
    image, _ = hospital(5)
    np.save(tmp_path / "flat.npy", image[0])
    (labels,) = classify_image(tmp_path / "flat.npy", flat, tmp_path)
    assert np.array_equal(read_image(labels).voxels, flat.labels(feature_maps(image[0], flat.study)))
    header = {"space": "left-posterior-superior", "space directions": OBLIQUE[:3, :3].T, "space origin": OBLIQUE[:3, 3]}
    nrrd.write(str(tmp_path / "ct.nrrd"), image, header, index_order="C")
    (labels,) = classify_image(tmp_path / "ct.nrrd", of, tmp_path)
    truth = read_ground_truth(labels)
    assert truth.segments == tuple(Segment(name, value, 0) for name, value in CLASSES.items())
    assert np.array_equal(truth.layers[0], of.labels(feature_maps(image, of.study)))


@pytest.mark.parametrize(("axes", "give"), [(3, "a whole volume"), (2, "one plane at a time")])
def test_a_model_of_volumes_takes_no_plane_and_one_of_planes_no_volume(tmp_path, model, axes, give):
    image, truth = hospital(5)
    if axes == 3:
        image, truth = image[0], truth[0]
    np.save(tmp_path / "ct.npy", image)
    np.save(tmp_path / "truth.npy", truth)
    made = Model.of(study(window={"size": 3, "axes": axes}), model.moments, "lda")
    made = Model.parse(made.canonical())
    (tmp_path / "maps").mkdir()
    said = f"study: window.axes is {axes}, the image has {image.ndim} axes: give {give}, or take a study or model of"
    with pytest.raises(StudyError, match=f"^ct.npy: {said}"):
        classify_image(tmp_path / "ct.npy", made, tmp_path / "maps")
    with pytest.raises(StudyError, match=f"^ct.npy: {said}"):
        evaluate_image(tmp_path / "ct.npy", tmp_path / "truth.npy", made)
    with pytest.raises(StudyError, match=f"^{said}"):
        made.predict(image)
    with pytest.raises(StudyError, match=f"^ct.npy: {said}"):
        made.predict(tmp_path / "ct.npy")
    row = Row(2, tmp_path / "ct.npy", tmp_path / "truth.npy", "p")
    with pytest.raises(ImageError, match=f"^ct.npy: {said}"):
        image_totals(row, made.study)
    made.save(tmp_path / "model.json")
    evaluating = Study.of(
        name="e", classes={"fat": 3}, evaluate={"model": str(tmp_path / "model.json"), "digest": made.digest}
    )
    with pytest.raises(ImageError, match=f"^ct.npy: {said}"):
        image_totals(row, evaluating)
    if axes == 3:  # one window of a volume is enough to say so
        volumes = Model.of(study(window={"size": [3, 3, 3]}), model.moments, "lda")
        with pytest.raises(StudyError, match=r"window\.size has 3 numbers, the image has 2 axes: give a whole volume"):
            volumes.predict(image)


def test_predict_warns_where_a_model_cannot_tell_planes_from_volumes(tmp_path, model):
    image, _ = hospital(8)
    np.save(tmp_path / "ct.npy", image)
    expected = model.labels(feature_maps(image, model.study))
    for given in (image, tmp_path / "ct.npy"):
        with pytest.warns(UserWarning, match=r"takes planes and volumes alike.*axes = 3") as said:
            assert np.array_equal(model.predict(given), expected)
        assert [one.filename for one in said] == [__file__]
    clear = Model.of(study(window={"size": 3, "axes": 3}), model.moments, "lda")
    assert np.array_equal(clear.predict(image), expected)


def test_labels_beyond_a_byte_are_written_in_two(tmp_path):
    of = Study.of(name="t", classes={"fat": 3, "bone": 1000}, feature=[{"kind": "intensity"}])
    made = Model.of(of, Moments.of_arrays([[0.0], [1.0], [9.0], [8.0]], [3, 3, 1000, 1000], names=["intensity"]), "lda")
    (labels,) = classify_image(write(tmp_path, np.array([[[0, 9]]], np.int16)), made, tmp_path)
    assert read_image(labels).voxels.tolist() == [[[3, 1000]]]


def test_evaluation_counts_what_the_maps_say(tmp_path, model):
    image, truth = hospital(6)
    write(tmp_path, image)
    write(tmp_path, truth, "truth.nii")
    got = evaluate_image(tmp_path / "ct.nii", tmp_path / "truth.nii", model)
    labels, chances = model.classify(feature_maps(image, model.study))
    confusion = np.array([[int(((truth == a) & (labels == b)).sum()) for b in (0, 3, 5, 9)] for a in (0, 3, 5, 9)])
    assert np.array_equal(got.confusion, confusion)
    index = np.zeros(10, int)
    index[[3, 5, 9]] = 1, 2, 3
    assert got == Counts.of(model.classes, index[truth], index[labels], list(chances))
    assert got.outcomes("bone").dice > Fraction(8, 10)


def test_evaluation_goes_slab_by_slab(tmp_path, model, monkeypatch):
    image, truth = hospital(6)
    write(tmp_path, image)
    write(tmp_path, truth, "truth.nii")
    whole = evaluate_image(tmp_path / "ct.nii", tmp_path / "truth.nii", model)
    monkeypatch.setattr(slabs, "__kwdefaults__", slabs.__kwdefaults__ | {"voxels": 1})
    assert evaluate_image(tmp_path / "ct.nii", tmp_path / "truth.nii", model) == whole


def test_another_hospitals_labels_are_told_by_its_study(tmp_path, model):
    image, truth = hospital(6)
    write(tmp_path, image)
    write(tmp_path, truth, "truth.nii")
    write(tmp_path, np.array([0, 0, 0, 30, 0, 50, 0, 0, 0, 3], np.uint8)[truth], "other.nii")
    classes = {"fat": 30, "liver / left": 50, "bone": 3}
    other = evaluate_image(tmp_path / "ct.nii", tmp_path / "other.nii", model, classes=classes)
    assert other == evaluate_image(tmp_path / "ct.nii", tmp_path / "truth.nii", model)
    with pytest.raises(StudyError, match="no class 'bone'"):
        evaluate_image(tmp_path / "ct.nii", tmp_path / "truth.nii", model, classes={"fat": 3, "liver / left": 5})


def test_a_class_that_was_withheld_counts_as_missed(tmp_path):
    of = study()
    image, truth = hospital(1)
    maps = np.stack(feature_maps(image, of), -1)[truth > 3] / of.unit
    moments = Moments.of_arrays(maps, truth[truth > 3], names=[feature.label for feature in of.feature])
    made = Model.of(of, moments, "lda")
    write(tmp_path, image)
    write(tmp_path, truth, "truth.nii")
    got = evaluate_image(tmp_path / "ct.nii", tmp_path / "truth.nii", made)
    assert got.classes == ("liver / left", "bone", "fat")
    assert got.voxels == (truth > 0).sum()
    assert got.outcomes("fat").fn == (truth == 3).sum()
    assert got.outcomes("fat").dice == 0
    assert got.outcomes("bone").fp > 0
    assert got.histograms[2].sum() == got.histograms[2, :, 0].sum() == truth.size


def test_what_cannot_be_evaluated_is_refused(tmp_path, model):
    image, truth = hospital(6)
    write(tmp_path, image)
    write(tmp_path, truth[:-1], "short.nii")
    with pytest.raises(ImageError, match=r"does not lie on the grid of ct\.nii"):
        evaluate_image(tmp_path / "ct.nii", tmp_path / "short.nii", model)
    layers = np.stack([truth == 3, truth == 5, (truth == 5) | (truth == 9)], -1).astype(np.uint8)
    header = {"kinds": ["list", "domain", "domain", "domain"]}
    for number, name in enumerate(CLASSES):
        header |= {f"Segment{number}_Name": name, f"Segment{number}_LabelValue": 1, f"Segment{number}_Layer": number}
    nrrd.write(str(tmp_path / "overlap.seg.nrrd"), layers, header, index_order="C")
    np.save(tmp_path / "ct.npy", image)
    with pytest.raises(ImageError, match="overlaps another"):
        evaluate_image(tmp_path / "ct.npy", tmp_path / "overlap.seg.nrrd", model, classes={n: n for n in CLASSES})


def test_an_error_of_an_image_names_it(tmp_path, model):
    write(tmp_path, np.full(SHAPE, 7, np.int16), "flat.nii")
    with pytest.raises(ImageError, match=r"flat\.nii: .*zscore"):
        classify_image(tmp_path / "flat.nii", model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["flat.nii"]


def test_no_map_takes_the_place_of_another_before_all_are_computed(tmp_path, model):
    image, _ = hospital(4)
    path = write(tmp_path, image)
    (tmp_path / "ct_p9_bone.nii").write_bytes(b"kept")
    with pytest.raises(ImageError, match="it is kept"):
        classify_image(path, model, tmp_path, probabilities=True)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["ct.nii", "ct_p9_bone.nii"]
    classify_image(path, model, tmp_path, probabilities=True, force=True)
    assert read_image(tmp_path / "ct_p9_bone.nii").grid.shape == SHAPE


def test_a_stem_is_the_name_without_the_ending(tmp_path):
    assert image_stem(tmp_path / "a.b.nii.gz") == "a.b"
    assert image_stem(tmp_path / "IM0001") == "IM0001"
    (tmp_path / "series.nii").mkdir()
    assert image_stem(tmp_path / "series.nii") == "series.nii"


def test_the_commands_classify_and_evaluate(tmp_path, model):
    model.save(tmp_path / "model.json")
    rows = []
    for seed in (7, 8):
        image, truth = hospital(seed)
        write(tmp_path, image, f"ct{seed}.nii")
        write(tmp_path, truth, f"truth{seed}.nii")
        rows.append((f"ct{seed}.nii", f"truth{seed}.nii"))
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "ground_truth"), *rows])
    images = [tmp_path / image for image, _ in rows]
    counts = sum(  # compiles what the commands need
        (evaluate_image(tmp_path / image, tmp_path / truth, model) for image, truth in rows), Counts.none(model.classes)
    )
    done = run("classify", tmp_path / "model.json", *images, "--out", tmp_path / "out", "--probabilities", check=0)
    assert len(done.stdout.splitlines()) == 8
    assert f"image 2 of 2 computed on {device_name('auto')}\n" in done.stderr
    assert np.array_equal(
        read_image(tmp_path / "out" / "ct7_labels.nii").voxels,
        model.labels(feature_maps(hospital(7)[0], model.study)),
    )
    assert "does not say how many axes its images have" in done.stderr
    again = run("classify", tmp_path / "model.json", images[0], "--out", tmp_path / "out", check=4)
    assert "--force" in again.stderr
    run("classify", tmp_path / "model.json", images[0], "--out", tmp_path / "out", "--force", "--quiet", check=0)
    twice = run("classify", tmp_path / "model.json", images[0], images[0], "--out", tmp_path / "out", check=3)
    assert "same name" in twice.stderr
    (tmp_path / "file").write_bytes(b"")
    refused = run("classify", tmp_path / "model.json", images[0], "--out", tmp_path / "file" / "x", check=3)
    assert "cannot be made" in refused.stderr

    done = run(
        "evaluate", tmp_path / "model.json", tmp_path / "manifest.csv", "--out", tmp_path / "eval.json",
        "--report", tmp_path / "eval.html", check=0,
    )  # fmt: skip
    assert model.digest in (tmp_path / "eval.html").read_text()
    assert f"image 2 of 2 computed on {device_name('auto')}\n" in done.stderr
    expected = {"model": model.digest, "classifier": "lda", "images": 2, **document(counts)}
    assert json.loads((tmp_path / "eval.json").read_text()) == expected
    assert f"{float(counts.outcomes('bone').dice):.4f}" in done.stdout
    assert f"accuracy over {counts.voxels:,} labelled voxels" in done.stdout
    assert "does not say how many axes its images have" in done.stderr
    everywhere = run(
        "evaluate", tmp_path / "model.json", tmp_path / "manifest.csv", "--out", tmp_path / "eval.json", "--everywhere",
        "--json", "--quiet", check=0,
    )  # fmt: skip
    assert json.loads(everywhere.stdout)["voxels"] == 2 * np.prod(SHAPE)
