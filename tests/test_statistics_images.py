"""Additive statistics from images to the result: what a row gives, which planes it needs, batches, a whole study."""

import msgspec
import numpy as np
import pytest

from voxring import ClassTotals, LocalTotals, Statistics, Study, local_totals, pooled
from voxring.batch import Journal, Row, image_totals, party_batch
from voxring.cli import voxring
from voxring.engine import planes_needed
from voxring.session.plan import IN_CHUNKS, Plan
from voxring.simulation import pooled_result, with_parties
from voxring.statistics import derived, fault, padded, slots, unpack
from voxring.study import load_study
from voxring.totals import result_document

KINDS = ({"kind": "intensity"}, {"kind": "mean", "window": 3}, {"kind": "variance", "window": 3}, {"kind": "gradient"})
ASKED = {
    "gram": True,
    "moments": 4,
    "histogram": {"bins": 6, "range": (0.0, 1.0)},
    "glcm": {"levels": 4, "range": (0.0, 1.0)},
}


def a_study(*, feature=KINDS, statistics=ASKED, window=None, method="rescale", **tables) -> Study:
    more = {"range": (-100.0, 100.0)} if method == "rescale" else {}
    return Study.of(
        name="t",
        classes={"a": 1, "b": 2},
        window=window or {"size": 3},
        standardise={"method": method, "fraction_bits": 8, **more},
        feature=list(feature),
        statistics=statistics,
        **tables,
    )


@pytest.mark.parametrize("shape", [(9, 7), (5, 6, 7)])
def test_a_row_has_the_statistics_that_its_other_totals_imply(shape: tuple[int, ...]) -> None:
    study = a_study()
    rng = np.random.default_rng(len(shape))
    image, truth = rng.integers(-120, 120, shape, np.int16), rng.integers(0, 2, shape, np.uint8)
    totals = local_totals(image, truth, study)
    mine = totals["a"]
    parts = unpack(mine.statistics, study)
    assert parts["powers"][:2] == (mine.total, mine.squares)
    assert parts["feature_sums"][0] == mine.total
    assert parts["gram"][0] == mine.squares
    assert sum(parts["histogram"]) == mine.voxels
    assert 0 < sum(parts["glcm"]) <= mine.voxels * (8 if len(shape) == 2 else 26)
    assert fault(mine.statistics, mine.voxels, study) is None
    assert totals["b"].voxels == 0
    assert set(padded(totals["b"].statistics, 0, study)) == {0}
    plain = local_totals(image, truth, Study.of(**msgspec.to_builtins(study) | {"statistics": {}, "feature": []}))
    assert plain["a"].statistics == ()
    assert ClassTotals(mine.voxels, mine.sum, mine.total, mine.squares, mine.patients) == plain["a"]


def test_a_row_is_read_as_its_file_says() -> None:
    """Slope, intercept and labels of a row hold for its statistics too."""
    study = a_study(method="none", statistics=ASKED | {"histogram": {"bins": 6, "range": (-90.0, 90.0)}})
    rng = np.random.default_rng(2)
    intensities, truth = rng.integers(-120, 120, (4, 6, 7), np.int16), rng.integers(0, 3, (4, 6, 7), np.uint8)
    stored = (intensities + 200) // 2 * 2
    expected = local_totals(intensities // 2 * 2, truth, study)
    other = local_totals(stored // 2, truth + 5, study, slope=2, intercept=-200, labels={"a": 6, "b": 7})
    assert other == expected


@pytest.mark.parametrize("border", ["reflect", "mirror", "nearest", "constant", "clip"])
@pytest.mark.parametrize("deep", [1, 2, 3, 4, 6])
def test_the_planes_that_are_needed_give_the_statistics_of_the_whole(border: str, deep: int) -> None:
    rng = np.random.default_rng([deep, len(border)])
    window = {"size": [int(rng.integers(1, 5)), 3, 3], "border": border}
    alone = {"size": 1, "border": border}
    glcm = {"statistics": {"glcm": {"levels": 3, "range": (0.0, 1.0), "distance": 3}}, "feature": []}
    studies = [
        a_study(feature=[{"kind": kind, "window": [deep, 3, 2]}], window=window) for kind in ("mean", "skewness")
    ]
    studies.append(a_study(feature=[{"kind": "std", "window": [deep, 1, 1]}, {"kind": "gradient"}], window=alone))
    studies.append(a_study(**glcm, window=alone))
    image = rng.integers(-120, 120, (17, 5, 6), np.int16)
    for first in (0, 1, 8, 15):
        truth = np.zeros(image.shape, np.uint8)
        truth[first : first + int(rng.integers(1, 3)), 1:4, 2:5] = rng.integers(1, 3, (1, 3, 3))
        for study in studies:
            start, stop = planes_needed([(truth, [1, 2])], image.dtype, study)
            part = local_totals(image[start:stop], truth[start:stop], study)
            assert part == local_totals(image, truth, study)
            assert stop - start <= 2 + max(deep, 4, 3)


@pytest.mark.parametrize("method", ["zscore", "nyul"])
@pytest.mark.parametrize("planar", [False, True])
def test_a_volume_whose_scaling_takes_all_voxels_is_reduced_in_slabs(tmp_path, method: str, planar: bool) -> None:
    """Pairs lie across slabs, in every direction, and further than a slab is deep."""
    rng = np.random.default_rng(planar)
    image = rng.integers(-90, 90, (19, 6, 7), np.int16)
    truth = rng.integers(0, 3, image.shape, np.uint8)
    truth[:2] = truth[:, 0] = 0
    np.save(tmp_path / "i.npy", image)
    np.save(tmp_path / "t.npy", truth)
    more = {"percentiles": [5, 50, 95], "landmarks": [0, 1, 5]} if method == "nyul" else {}
    for distance in (1, 2, 7):
        study = Study.of(
            name="t",
            classes={"a": 1, "b": 2},
            window={"size": [2, 3, 3]},
            standardise={"method": method, **more},
            feature=[{"kind": "mean", "window": 3}, {"kind": "gradient"}],
            statistics=ASKED | {"glcm": {"levels": 3, "range": (0.0, 1.0), "distance": distance, "planar": planar}},
        )
        row = Row(1, tmp_path / "i.npy", tmp_path / "t.npy", "")
        assert image_totals(row, study) == local_totals(image, truth, study)


def test_a_batch_and_its_journal_give_the_same(tmp_path) -> None:
    rng = np.random.default_rng(8)
    rows = ["image,ground_truth,patient"]
    images = []
    for i in range(4):
        image, truth = rng.integers(-120, 120, (4, 5, 6), np.int16), rng.integers(0, 3, (4, 5, 6), np.uint8)
        np.save(tmp_path / f"{i}i.npy", image)
        np.save(tmp_path / f"{i}t.npy", truth)
        rows.append(f"{i}i.npy,{i}t.npy,p{i // 2}")
        images.append((image, truth))
    manifest = tmp_path / "m.csv"
    manifest.write_text("\n".join(rows) + "\n")
    study = a_study()
    expected = sum((local_totals(image, truth, study) for image, truth in images), LocalTotals())
    alone = party_batch(manifest, study)
    assert [alone.totals[name].statistics for name in "ab"] == [expected[name].statistics for name in "ab"]
    with Journal(tmp_path, study, "x") as journal:
        assert party_batch(manifest, study, journal=journal).totals == alone.totals
    with Journal(tmp_path, study, "x") as journal:
        again = party_batch(manifest, study, journal=journal)
    assert (again.known, again.patients) == (4, alone.patients)


TOML = """
name = "t"
classes = { a = 1, b = 2 }
window = { size = 3 }
standardise = { method = "rescale", fraction_bits = 8, range = [-100.0, 100.0] }
feature = [
    { kind = "intensity" }, { kind = "mean", window = 3 }, { kind = "variance", window = 3 }, { kind = "gradient" }
]
[statistics]
gram = true
moments = 4
histogram = { bins = 6, range = [0.0, 1.0] }
glcm = { levels = 96, range = [0.0, 1.0] }
"""


def test_a_whole_study_equals_pooled_bit_for_bit(tmp_path, capsys) -> None:
    rng = np.random.default_rng(9)
    manifests = {}
    for party in ("north", "south", "west"):
        lines = ["image,ground_truth"]
        for i in range(2):
            np.save(tmp_path / f"{party}{i}i.npy", rng.integers(-120, 120, (4, 9, 8), np.int16))
            np.save(tmp_path / f"{party}{i}t.npy", rng.integers(0, 2 if party == "west" else 3, (4, 9, 8), np.uint8))
            lines.append(f"{party}{i}i.npy,{party}{i}t.npy")
        manifests[party] = tmp_path / f"{party}.csv"
        manifests[party].write_text("\n".join(lines) + "\n")
    study = tmp_path / "study.toml"
    study.write_text(TOML)
    out = tmp_path / "result.json"
    options = [f"--party={name}={path}" for name, path in manifests.items()]
    asking = a_study(statistics=ASKED | {"glcm": {"levels": 96, "range": (0.0, 1.0)}})
    assert load_study(study) == asking
    arguments = ["simulate", str(study), *options, "--out", str(out), "--pooled", "--quiet"]
    assert voxring(arguments, standalone_mode=False) == 0
    shown = capsys.readouterr().out
    for words in ("equal to pooled, bit for bit: yes", "kurtosis", "correlation"):
        assert words in shown
    named = with_parties(asking, list(manifests))
    assert Plan(named).longest > IN_CHUNKS  # goes in chunks
    answer = pooled_result(named, manifests).answer
    document = result_document(answer, named)
    assert msgspec.json.decode(out.read_bytes()) == msgspec.json.decode(msgspec.json.encode(document))
    for name in "ab":
        one = answer[name]
        assert isinstance(one, Statistics)
        assert len(one.additive) == slots(named)
        assert document["classes"][name]["statistics"] == derived(one.additive, one.voxels, named)
    assert pooled(LocalTotals(), named)["a"] == "fewer than 2 voxels in all (privacy.min_voxels)"
