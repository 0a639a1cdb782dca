"""`voxring demo --train`: alone and together, on made-up patients and on one's own."""

import csv
import json
from hashlib import sha256
from xml.etree import ElementTree

import numpy as np
import pytest

from test_cli import run
from voxring import simulation
from voxring.batch import party_totals
from voxring.classify import evaluate_image
from voxring.cli import demo_train
from voxring.cli.demo_train import dice_plot, make_up
from voxring.evaluate import Counts
from voxring.landmarks import standard_scale
from voxring.learn import Model, Moments
from voxring.phantom import CLASSES, SHAPE, Scanner, patient
from voxring.session import Course
from voxring.study import Study
from voxring.totals import LocalTotals, pooled, result_document


def test_a_made_up_patient_is_the_same_everywhere():
    image, truth = patient("north-0", Scanner(30, 1, 1.0))
    assert image.dtype == np.int16
    assert sha256(truth.tobytes()).hexdigest()[:16] == "713df1f49bb37794"
    again, _ = patient("north-0", Scanner(30, 1, 1.0))
    assert np.array_equal(image, again)
    other, form = patient("north-1", Scanner(30, 1, 1.0))
    assert not np.array_equal(truth, form)
    assert not np.array_equal(image, other)


def test_scanners_differ_in_what_is_asked_of_them():
    quiet, truth = patient("a", Scanner(0, 1, 1.0))
    noisy, same = patient("a", Scanner(50, 1, 1.0))
    blurred, _ = patient("a", Scanner(50, 3, 1.0))
    stronger, _ = patient("a", Scanner(0, 1, 2.0))
    assert truth.shape == SHAPE
    assert np.array_equal(truth, same)
    inside = truth == CLASSES["organ"]
    added = (noisy.astype(int) - quiet)[inside]
    assert 47 < added.std() < 53
    assert abs(added.mean()) < 2
    assert blurred[inside].std() < noisy[inside].std()

    def contrast(image):
        return image[truth == CLASSES["organ"]].mean() - image[truth == CLASSES["lesion"]].mean()

    assert contrast(stronger) - contrast(quiet) == pytest.approx(65, abs=1)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Three hospitals' own images and a manifest of held-out ones: the made-up ones of the demo, fewer."""
    folder = tmp_path_factory.mktemp("own")
    study, manifests, held_out = make_up(folder)
    with held_out.open(newline="") as file:
        rows = list(csv.reader(file))
    with held_out.open("w", newline="") as file:
        csv.writer(file).writerows(rows[:3])
    return folder, study, dict(list(manifests.items())[:3]), held_out


def dice(answer, study, rows):
    model = Model.of(study, Moments.of_result(result_document(answer, study), study), "qda")
    counts = sum((evaluate_image(*row, model) for row in rows), Counts.none(model.classes))
    return {name: float(counts.outcomes(name).dice) for name in study.classes}


def test_alone_and_together_as_computed_in_the_open(own, tmp_path):
    folder, study, manifests, held_out = own
    totals = {name: party_totals(path, study) for name, path in manifests.items()}
    answers = {name: pooled(mine, study) for name, mine in totals.items()}
    answers["together"] = pooled(sum(totals.values(), LocalTotals()), study)
    lines = held_out.read_text().splitlines()[1:]
    rows = [[held_out.parent / cell for cell in line.split(",")] for line in lines]
    scores = {name: dice(answer, study, rows) for name, answer in answers.items()}  # compiles what the command needs
    done = run(
        "demo", "--train", "--keep", tmp_path, "--plot", tmp_path / "dice.svg", "--report", tmp_path / "a.html",
        "--study", folder / "study.toml",
        *(f"--data={name}={path}" for name, path in manifests.items()), "--held-out", held_out, "--json", check=0,
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert document["equal"] is True
    assert list(document["held_out"]) == [*manifests, "together"]
    for name, expected in scores.items():
        got = document["held_out"][name]
        assert {key: got[key] for key in expected} == expected
        assert got["mean"] == pytest.approx(np.mean(list(expected.values())))
    assert Model.load(tmp_path / "model.json").classes == tuple(sorted(CLASSES, key=CLASSES.get))
    assert ElementTree.parse(tmp_path / "dice.svg").getroot().tag.endswith("svg")  # noqa: S314 - our own
    assert "Σ" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "made up" not in done.stderr


def test_where_landmarks_are_agreed_on_each_alone_has_its_own(own, tmp_path, monkeypatch, capsys):
    """The sums are made in the open here: tests of sessions show that the rings give the same."""
    _, _, manifests, held_out = own
    study = Study.of(
        name="t",
        classes=CLASSES,
        window={"size": 3},
        standardise={"method": "nyul", "percentiles": [1, 50, 99], "landmarks": "agree", "foreground": "all"},
        feature=[{"kind": "intensity"}, {"kind": "mean", "window": 3}],
        statistics={"gram": True},
    )
    rows = [[held_out.parent / cell for cell in line.split(",")] for line in held_out.read_text().splitlines()[1:2]]
    rows_file = tmp_path / "rows.csv"
    rows_file.write_text("image,ground_truth\n" + "".join(f"{image},{truth}\n" for image, truth in rows))

    def in_the_open(study, manifests, notify):
        found = simulation.pooled_result(study, manifests)
        return simulation.Simulated(study, found.answer, found.document, None, {}, 0.0, Course())

    monkeypatch.setattr(simulation, "simulate", in_the_open)
    assert demo_train.run(tmp_path, "qda", study, manifests, rows_file, None, None, True) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["equal"] is True
    scales = {}
    for name, path in manifests.items():
        scales[name] = standard_scale(party_totals(path, study), study)
        alone = study.with_landmarks(scales[name])
        answer = pooled(party_totals(path, alone), alone)
        assert dice(answer, alone, rows) == {one: document["held_out"][name][one] for one in CLASSES}
    together = Model.load(tmp_path / "model.json").study
    everybody = sum((party_totals(path, study) for path in manifests.values()), LocalTotals())
    assert together.standardise == study.with_landmarks(standard_scale(everybody, study)).standardise
    assert len(set(scales.values())) == 3


def test_a_plot_has_a_mark_for_every_number_and_escapes_names():
    scores = {
        "a<b": {"x": 0.5, "y": None, "mean": 0.5},
        "together": {"x": 1.0, "y": 0.0, "mean": 0.5},
    }
    root = ElementTree.fromstring(dice_plot(scores, ["x", "y"]))  # noqa: S314 - our own
    space = "{http://www.w3.org/2000/svg}"
    marks = root.findall(f"{space}circle")
    assert len(marks) == 5
    assert sum(mark.get("fill") != "none" for mark in marks) == 3
    titles = [mark.find(f"{space}title").text for mark in marks]
    assert titles[:2] == ["together: 1.000", "a<b: 0.500"]  # the disc lies below the rings, and hides none
    assert marks[0].get("cy") == "40.0"  # the top of the axis
    assert float(marks[2].get("cy")) == 270  # and its bottom


@pytest.mark.parametrize(
    "arguments",
    [
        ("--data=a=b",),
        ("--train", "--data=a=b"),
        ("--train", "--held-out", "x"),
        ("--train", "--study", "x", "--held-out", "x"),
        ("--plot", "x.svg"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments):
    assert "go" in run("demo", *arguments, check=2).stderr


def test_a_study_without_sums_to_train_on_is_refused(own, tmp_path):
    folder, _, manifests, held_out = own
    (tmp_path / "study.toml").write_text(
        (folder / "study.toml").read_text().replace("gram = true", "gram = false"), encoding="utf-8"
    )
    done = run(
        "demo", "--train", "--study", tmp_path / "study.toml", "--held-out", held_out,
        *(f"--data={name}={path}" for name, path in manifests.items()), check=3,
    )  # fmt: skip
    assert "gram = true" in done.stderr
