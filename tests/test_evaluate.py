"""Evaluation from counts against scikit-learn on the voxels themselves, and against the definitions."""

from fractions import Fraction

import numpy as np
import pytest
from sklearn import metrics

from voxring.errors import ImageError
from voxring.evaluate import BINS, Counts, document

CLASSES = ("liver", "lesion", "bone")


def sample(seed, size=400, none=True):
    """Ground truth, classification and probabilities of some voxels, with ties and both ends."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0 if none else 1, 4, size)
    scores = rng.random((3, size)) ** 3
    scores[np.maximum(truth, 1) - 1, np.arange(size)] += rng.random(size)
    probabilities = scores / scores.sum(0)
    probabilities[:, :5] = np.array([[1.0], [0.0], [0.0]])
    probabilities[:, 5:60] = probabilities[:, 5:6]
    given = probabilities.argmax(0) + 1
    given[60:70] = 0
    return truth, given, probabilities


def bin_of(probability, bins=BINS):
    q = round(Fraction(float(probability)) * 2**20)
    return min(q * bins // 2**20, bins - 1), q


@pytest.mark.parametrize("seed", range(4))
def test_every_count_is_that_of_a_loop_over_the_voxels(seed):
    truth, given, probabilities = sample(seed, size=200)
    counts = Counts.of(CLASSES, truth, given, probabilities, bins=32)
    confusion = np.zeros((4, 4), int)
    histograms, sums = np.zeros((3, 4, 32), int), np.zeros((3, 4, 32), int)
    for voxel, (actual, got) in enumerate(zip(truth, given, strict=True)):
        confusion[actual, got] += 1
        for index in range(3):
            at, q = bin_of(probabilities[index, voxel], 32)
            histograms[index, actual, at] += 1
            sums[index, actual, at] += q
    assert np.array_equal(counts.confusion, confusion)
    assert np.array_equal(counts.histograms, histograms)
    assert np.array_equal(counts.sums, sums)


@pytest.mark.parametrize("region", ["labelled", "everywhere"])
@pytest.mark.parametrize("name", CLASSES)
def test_ratios_equal_those_of_scikit_learn(name, region):
    truth, given, probabilities = sample(1)
    counts = Counts.of(CLASSES, truth, given, probabilities)
    kept = truth > 0 if region == "labelled" else np.ones(truth.size, bool)
    index = CLASSES.index(name)
    actual, got = truth[kept] == index + 1, given[kept] == index + 1
    outcomes = counts.outcomes(name, region)
    tn, fp, fn, tp = metrics.confusion_matrix(actual, got).ravel()
    assert (outcomes.tn, outcomes.fp, outcomes.fn, outcomes.tp) == (tn, fp, fn, tp)
    assert float(outcomes.dice) == pytest.approx(metrics.f1_score(actual, got), abs=1e-15)
    assert float(outcomes.sensitivity) == pytest.approx(metrics.recall_score(actual, got), abs=1e-15)
    assert float(outcomes.specificity) == pytest.approx(metrics.recall_score(~actual, ~got), abs=1e-15)
    assert float(outcomes.precision) == pytest.approx(metrics.precision_score(actual, got), abs=1e-15)
    score = probabilities[index][kept]
    roc = counts.roc(name, region)
    binned = [bin_of(one)[0] for one in score]
    assert float(roc.auc) == pytest.approx(metrics.roc_auc_score(actual, binned), abs=1e-12)
    assert float(roc.auc) == pytest.approx(metrics.roc_auc_score(actual, score), abs=2 / BINS)
    false, true, _ = metrics.roc_curve(actual, binned, drop_intermediate=False)
    points = np.array(sorted({(fp / (~actual).sum(), tp / actual.sum()) for fp, tp in roc.points}))
    assert np.allclose(points, np.array(sorted(set(zip(false, true, strict=True)))))


@pytest.mark.parametrize("region", ["labelled", "everywhere"])
def test_calibration_is_that_of_the_voxels(region):
    truth, given, probabilities = sample(2)
    counts = Counts.of(CLASSES, truth, given, probabilities)
    kept = truth > 0 if region == "labelled" else np.ones(truth.size, bool)
    for index, name in enumerate(CLASSES):
        score, actual = probabilities[index][kept], truth[kept] == index + 1
        group = np.minimum(np.floor(score * 16), 15)
        got = counts.calibration(name, region)
        assert list(got.voxels) == [int((group == one).sum()) for one in range(16)]
        assert list(got.positives) == [int(actual[group == one].sum()) for one in range(16)]
        assert np.allclose(
            [float(one) for one in got.promised], [score[group == one].sum() for one in range(16)], atol=1e-3
        )
        error = sum(abs(score[group == one].sum() - actual[group == one].sum()) for one in range(16)) / kept.sum()
        assert float(got.error) == pytest.approx(error, abs=1e-6)


def test_accuracy_counts_labelled_voxels_alone():
    truth, given, probabilities = sample(3)
    accuracy = Counts.of(CLASSES, truth, given, probabilities).accuracy()
    assert float(accuracy) == pytest.approx(metrics.accuracy_score(truth[truth > 0], given[truth > 0]))


@pytest.mark.parametrize("cut", [0, 1, 137, 400])
def test_parts_add_up_to_the_whole_and_go_through_rows(cut):
    truth, given, probabilities = sample(4, none=False)
    whole = Counts.of(CLASSES, truth, given, probabilities)
    parts = [
        Counts.of(CLASSES, truth[part], given[part], probabilities[:, part]) for part in (slice(cut), slice(cut, None))
    ]
    assert parts[0] + parts[1] == whole
    assert sum(parts, Counts.none(CLASSES)) == whole
    rows = {name: whole.of_class(name) for name in CLASSES}
    assert Counts.of_classes(CLASSES, rows) == whole
    assert (whole != parts[0]) == (cut < 400)
    added = {
        name: [one + other for one, other in zip(*(part.of_class(name) for part in parts), strict=True)]
        for name in CLASSES
    }
    assert Counts.of_classes(CLASSES, added) == whole


def test_rows_of_some_classes_leave_the_others_and_none_out():
    truth, given, probabilities = sample(4)
    whole = Counts.of(CLASSES, truth, given, probabilities)
    some = Counts.of_classes(CLASSES, {name: whole.of_class(name) for name in ("bone", "liver")})
    kept = np.isin(truth, [1, 3])
    assert some == Counts.of(CLASSES, truth[kept], given[kept], probabilities[:, kept])


def test_shape_and_type_do_not_matter():
    truth, given, probabilities = sample(5)
    flat = Counts.of(CLASSES, truth, given, probabilities)
    shaped = Counts.of(
        CLASSES,
        truth.reshape(4, 10, 10).astype(np.uint8),
        given.reshape(4, 10, 10),
        list(probabilities.reshape(3, 4, 10, 10)),
    )
    assert flat == shaped


def test_where_nothing_is_counted_no_ratio_is_made_up():
    entry = document(Counts.none(CLASSES))["classes"]["liver"]
    for name in ("dice", "sensitivity", "specificity", "precision", "auc"):
        assert entry[name] is None
    assert entry["calibration"]["error"] is None
    assert document(Counts.none(CLASSES))["accuracy"] is None


def test_the_document_holds_the_counts():
    truth, given, probabilities = sample(6)
    counts = Counts.of(CLASSES, truth, given, probabilities)
    made = document(counts)
    assert made["confusion"] == {"classes": ["none", *CLASSES], "counts": counts.confusion.tolist()}
    assert made["voxels"] == counts.voxels == (truth > 0).sum()
    assert document(counts, "everywhere")["voxels"] == truth.size
    entry = made["classes"]["bone"]
    assert entry["tp"] + entry["fn"] == sum(entry["roc"]["positives"]) == (truth == 3).sum()
    assert entry["fp"] + entry["tn"] == sum(entry["roc"]["negatives"])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"truth": np.array([4, 1])}, "indices of classes from 0 to 3"),
        ({"given": np.array([-1, 1])}, "indices of classes from 0 to 3"),
        ({"given": np.array([1])}, "one shape"),
        ({"probabilities": np.zeros((2, 2))}, "one shape"),
        ({"probabilities": np.full((3, 2), 1.01)}, "from 0 to 1"),
        ({"probabilities": np.full((3, 2), -0.01)}, "from 0 to 1"),
        ({"probabilities": np.full((3, 2), np.nan)}, "from 0 to 1"),
        ({"bins": 24}, "multiple of 16"),
        ({"bins": 0}, "multiple of 16"),
    ],
)
def test_what_cannot_be_counted_is_refused(change, word):
    arguments = {"truth": np.array([1, 2]), "given": np.array([1, 2]), "probabilities": np.zeros((3, 2))}
    with pytest.raises(ImageError, match=word):
        Counts.of(CLASSES, **(arguments | change))


def test_counts_of_other_classes_or_lengths_do_not_add():
    with pytest.raises(ImageError, match="do not add"):
        Counts.none(CLASSES) + Counts.none(CLASSES[:2])
    with pytest.raises(ImageError, match="do not add"):
        Counts.none(CLASSES, 16) + Counts.none(CLASSES, 32)
    with pytest.raises(ImageError, match="expected 1540 counts of a class, got 3"):
        Counts.of_classes(CLASSES, {"liver": [1, 2, 3]})
    with pytest.raises(ImageError, match="divides"):
        Counts.none(CLASSES).calibration("liver", groups=7)
