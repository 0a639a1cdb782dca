"""Evaluation over the hospitals: the model on every party's images, counted class by class, in one secure sum."""

import json
from dataclasses import replace

import msgspec
import nrrd
import numpy as np
import pytest

import voxring
from naive_classifiers import evaluation as naive_evaluation
from sessions import Network
from test_classify import hospital, trained, write
from test_classify import study as model_study
from test_cli import run
from voxring.batch import Row, image_totals, party_batch, party_totals
from voxring.batch.journal import totals_digest
from voxring.engine import local_totals, planes_needed
from voxring.errors import BoundError, ImageError, ModelError, StudyError
from voxring.evaluate import Counts
from voxring.features import feature_maps
from voxring.learn.evaluation import model_of
from voxring.result import Result
from voxring.ring.sheet import sheet
from voxring.session.differencing import brought
from voxring.statistics import evaluation, fault, layout, slots
from voxring.study import Study, load_study
from voxring.totals import LocalTotals, check_bounds, pooled

BINS = 16
NAMES = ("bone", "fat", "liver / left", "air")
LABELS = {"bone": 9, "fat": 3, "liver / left": 5, "air": 7}
"""Classes in another order than the model's, and one that the model does not know."""


@pytest.fixture(scope="module")
def model():
    return trained()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("evaluated")
    model.save(folder / "model.json")
    for number, party in enumerate("abc"):
        rows = ["image,ground_truth,patient"]
        for image_number in range(2):
            image, truth = hospital(20 + 2 * number + image_number)
            truth[0, :2] = 7
            name = f"{party}{image_number}"
            write(folder, image, f"{name}.nii", slope=2.0, inter=-10.0)
            write(folder, truth, f"{name}_t.nii")
            rows.append(f"{name}.nii,{name}_t.nii,{name}")
        (folder / f"{party}.csv").write_text("\n".join(rows))
    return folder


def a_study(folder, model, **tables):
    given = {
        "name": "t",
        "classes": LABELS,
        "window": {"size": 3},
        "bounds": {"voxels_per_party": 10**6},
        "evaluate": model and {"model": str(folder / "model.json"), "digest": model.digest, "bins": BINS},
        "party": [{"name": name} for name in "abc"],
    }
    return Study.of(**given | tables)


@pytest.fixture(scope="module")
def study(folder, model):
    return a_study(folder, model)


@pytest.fixture(scope="module")
def totals(folder, study):
    return {name: party_totals(folder / f"{name}.csv", study) for name in "abc"}


@pytest.fixture(scope="module")
def truth(folder, model):
    """The rows of counts by the definition, from the maps of whole images."""
    rows = {name: np.zeros(len(NAMES) + 1 + 2 * len(NAMES) * BINS, object) for name in NAMES}
    for number in range(6):
        image, labels = hospital(20 + number)
        labels[0, :2] = 7
        given, chances = model.classify(feature_maps(image, model.study, slope=2, intercept=-10))
        given = [model.classes[model.values.index(value)] for value in given.ravel()]
        chances = {name: chance.ravel().tolist() for name, chance in zip(model.classes, chances, strict=True)}
        actual = [next((n for n in NAMES if LABELS[n] == v), None) for v in labels.ravel()]
        for name, row in naive_evaluation(NAMES, actual, given, chances, BINS).items():
            rows[name] += row
    return {name: tuple(row) for name, row in rows.items()}


def ended(study, totals):
    network = Network(study, totals)
    network.finish()
    assert network.errors == []
    return network


def test_the_rings_give_the_counts_of_the_definition(study, totals, truth):
    network = ended(study, totals)
    assert network.researcher.answer == pooled(sum(totals.values(), LocalTotals()), study)
    assert {name: one.additive for name, one in network.researcher.answer.items()} == truth
    learned = network.researcher.view.learned
    assert {what for what, _ in learned} == {"n", "patients", "sum", "sdsum", "given", "probabilities", "promised"}
    assert {what for what, _ in network.parties["a"].heard().view.learned} == {"n", "μ"}


def test_the_result_says_how_well_the_model_does(tmp_path, study, totals, truth, model):
    result = Result.of(ended(study, totals).researcher.answer, study)
    counts = Counts.of_classes(NAMES, truth, BINS)
    assert result.evaluation == counts
    found = result.document["evaluation"]
    assert found["model"] == model.digest
    assert found["classes"]["fat"]["dice"] == float(counts.outcomes("fat").dice) > 0.5
    assert found["classes"]["air"]["dice"] == 0
    assert found["confusion"]["counts"] == counts.confusion.tolist()
    result.save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json", study).answer == result.answer
    changed = json.loads((tmp_path / "result.json").read_text())
    changed["classes"]["fat"]["statistics"]["evaluation"]["given"][1] += 1
    (tmp_path / "result.json").write_text(json.dumps(changed))
    with pytest.raises(ModelError, match="no voxels can have"):
        Result.load(tmp_path / "result.json", study)


def test_voxels_of_a_withheld_class_are_in_no_number(folder, model, totals, truth):
    few = 1 + min(sum(one[name].voxels for one in totals.values()) for name in NAMES)
    study = a_study(folder, model, privacy={"min_voxels": few})
    answer = ended(study, totals).researcher.answer
    (withheld,) = (name for name, one in answer.items() if isinstance(one, str))
    counts = Result.of(answer, study).evaluation
    assert counts == Counts.of_classes(NAMES, {name: truth[name] for name in NAMES if name != withheld}, BINS)
    assert counts.outcomes(withheld).sensitivity is None
    assert counts.voxels == sum(one.voxels for one in answer.values() if not isinstance(one, str))


def test_an_image_is_read_no_further_than_the_model_needs(folder, model):
    image, labels = hospital(8, (9, 12, 11))
    labels[:4], labels[5:] = 0, 0
    narrow = trained(model_study(standardise={"method": "none"}))
    narrow.save(folder / "narrow.json")
    tables = {"evaluate": {"model": str(folder / "narrow.json"), "digest": narrow.digest, "bins": BINS}}
    study = a_study(folder, narrow, **tables, window={"size": 1})
    first, stop = planes_needed([(labels, tuple(LABELS.values()))], image.dtype, study)
    assert (first, stop) == (3, 6)
    whole = local_totals(image, labels, study, slope=0.5, intercept=-9)
    assert local_totals(image[first:stop], labels[first:stop], study, slope=0.5, intercept=-9) == whole
    given = narrow.labels(feature_maps(image, narrow.study, slope=0.5, intercept=-9))[labels == 9]
    assert whole["bone"].statistics[: len(NAMES) + 1] == (0, *((given == LABELS[name]).sum() for name in NAMES))
    assert planes_needed([(labels, (9,))], image.dtype, a_study(folder, model, window={"size": 1})) == (0, 9)
    flat = local_totals(image[4], labels[4], study)
    assert sum(flat["fat"].statistics[: len(NAMES) + 1]) == (labels[4] == 3).sum()


def test_a_class_of_the_model_that_the_study_lacks_counts_as_none(folder, model):
    image, labels = hospital(12)
    image = (image + np.random.default_rng(1).normal(0, 300, image.shape)).astype(np.int16)
    whole, part = (
        local_totals(image, labels, a_study(folder, model, classes=classes))["bone"].statistics
        for classes in (LABELS, {"bone": 9, "air": 7})
    )
    bone, fat, liver = whole[1:4]
    assert fat + liver > 0
    assert part[:3] == (fat + liver, bone, 0)
    assert part[3 : 3 + BINS] == whole[5 : 5 + BINS]


def test_evaluation_stands_beside_other_statistics(folder, model):
    study = a_study(folder, model, statistics={"moments": 2})
    image, labels = hospital(9)
    alone = local_totals(image, labels, a_study(folder, model))
    both = local_totals(image, labels, study)
    powers = both["fat"].total, both["fat"].squares
    assert both["fat"].statistics == powers + alone["fat"].statistics
    assert both["air"].statistics == ()


def test_the_digest_and_what_depends_on_it_follow_the_model_and_not_where_it_lies(tmp_path, folder, model, study):
    (tmp_path / "study.toml").write_text(
        f'name = "t"\nclasses = {{ fat = 3 }}\n[evaluate]\nmodel = "../m.json"\ndigest = "{model.digest}"\n'
    )
    read = load_study(tmp_path / "study.toml")
    assert read.evaluate.model == str(tmp_path / "../m.json")
    moved = Study.of(name="t", classes={"fat": 3}, evaluate={"model": "elsewhere.json", "digest": model.digest})
    assert moved.digest == read.digest
    others = [a_study(folder, model, evaluate=None)]
    for key, value in (("digest", "0" * 64), ("bins", 32)):
        tables = msgspec.to_builtins(study.evaluate) | {key: value}
        others.append(a_study(folder, model, evaluate=tables))
    assert len({one.digest for one in (study, *others)}) == 4
    assert len({totals_digest(one) for one in (study, *others)}) == 4
    assert b"evaluate" not in others[0].canonical()
    assert "evaluates" in study._repr_html_()
    assert [len(brought(one, [], str).classes["fat"].blocks) for one in (study, others[0])] == [3, 0]
    of = [set(brought(one, [], str).classes["fat"].blocks) for one in (study, *others[1:])]
    assert not of[0] & of[1] | of[0] & of[2] | of[1] & of[2]


def test_what_cannot_be_evaluated_is_refused(tmp_path, folder, model):
    image, labels = hospital(10)

    def refused(of, **evaluate):
        tables = {"model": str(tmp_path / "model.json"), "digest": of.digest} | evaluate
        local_totals(image, labels, a_study(folder, model, evaluate=tables))

    ridge = trained(classifier="ridge")
    ridge.save(tmp_path / "model.json")
    with pytest.raises(ModelError, match="labels alone: evaluate lda, qda, gnb or logistic"):
        refused(ridge)
    with pytest.raises(ModelError, match=f"digest {model.digest[:12]}.*got {ridge.digest[:12]}"):
        refused(model)
    with pytest.raises(ModelError, match="no model can be read"):
        refused(model, model=str(tmp_path / "none.json"))
    with pytest.raises(ModelError, match="names no model"):
        refused(model, model="")
    with pytest.raises(ModelError, match="its classes are fat, liver / left, bone, the study's air"):
        local_totals(image, labels, a_study(folder, model, classes={"air": 7}))
    with pytest.raises(StudyError, match=r"evaluate.digest: expected the 64 digits"):
        a_study(folder, model, evaluate={"digest": "ab"})
    with pytest.raises(StudyError, match="fewer than 2\\^43 voxels"):
        a_study(folder, model, bounds={"voxels_per_party": 2**42})
    with pytest.raises(StudyError, match="asks for no evaluation"):
        evaluation({}, a_study(folder, model, evaluate=None))


def test_planes_without_a_class_are_in_no_slab(monkeypatch, model):
    truth = np.zeros((6, 2, 1), np.uint8)
    truth[[0, 2, 3, 4], 1] = 7
    stack = model.stack(truth.astype(np.int16))
    assert list(stack.slabs(truth)) == [(0, 1), (2, 5)]
    monkeypatch.setattr("voxring.features.SLAB", 2 * len(stack.study.feature) * 2)  # two planes of all maps
    assert list(stack.slabs(truth)) == [(0, 1), (2, 4), (4, 5)]
    assert list(stack.slabs(truth[2])) == [(0, 1)]


def test_classes_that_overlap_are_refused(tmp_path, folder, model):
    image, labels = hospital(11)
    np.save(tmp_path / "ct.npy", image)
    named = {"fat": "fat", "bone": "bone"}
    header = {"kinds": ["list", "domain", "domain", "domain"]}
    for i, name in enumerate(named):
        header |= {f"Segment{i}_Name": name, f"Segment{i}_LabelValue": "1", f"Segment{i}_Layer": str(i)}
    apart = np.stack([labels == 3, labels == 9]).astype(np.uint8)
    both = np.stack([labels == 3, labels > 0]).astype(np.uint8)
    study = a_study(folder, model, classes=named)
    for layers, refused in ((apart, False), (both, True)):
        nrrd.write(str(tmp_path / "t.seg.nrrd"), np.moveaxis(layers, 0, -1), header, index_order="C")
        row = Row(2, tmp_path / "ct.npy", tmp_path / "t.seg.nrrd", "p")
        if refused:
            with pytest.raises(ImageError, match="classes overlap"):
                image_totals(row, study)
            continue
        found = image_totals(row, study)
        assert found["fat"] == local_totals(image, labels, study, labels={"fat": 3, "bone": 9})["fat"]


@pytest.mark.parametrize("block", ["given", "probabilities", "promised"])
def test_counts_that_no_voxels_can_have_are_refused(study, totals, block):
    sizes = {one.name: one.size for one in layout(study)}
    assert sum(sizes.values()) == slots(study)
    starts = dict(zip(sizes, (0, sizes["given"], sizes["given"] + sizes["probabilities"]), strict=True))
    mine = totals["a"]["fat"]
    assert fault(mine.statistics, mine.voxels, study) is None
    place = next(i for i in range(starts[block], slots(study)) if mine.statistics[i])
    # Of probabilities: what all voxels together could have, and more than those of the bin can.
    changes = (mine.voxels * 2**20, -1) if block == "promised" else (1, -1, 1 << 40)
    for change in changes:
        wrong = list(mine.statistics)
        wrong[place] = change if block == "promised" else wrong[place] + change
        assert fault(wrong, mine.voxels, study) == block
        with pytest.raises(BoundError, match=block):
            check_bounds(LocalTotals({"fat": replace(mine, statistics=tuple(wrong))}), study)


def test_the_sheet_tells_of_the_model_and_of_each_block(study, model):
    (told,) = (section for section in sheet(study).sections if section.title == "Additive statistics")
    assert any(model.digest in sentence for sentence in told.sentences)
    assert [row[:2] for row in told.rows] == [(block.name, str(block.size)) for block in layout(study)]
    without = Study.of(name="t", classes={"a": 1}, statistics={"moments": 2})
    (told,) = (section for section in sheet(without).sections if section.title == "Additive statistics")
    assert not any("model" in sentence for sentence in told.sentences)


def test_processes_find_what_one_machine_does(folder, study, totals):
    manifests = {name: folder / f"{name}.csv" for name in "abc"}
    ran = voxring.simulate(a_study(folder, None, evaluate=study.evaluate, party=()), manifests)
    assert ran.answer == pooled(sum(totals.values(), LocalTotals()), study)
    assert ran.study.digest == study.digest
    assert [(one.sum, len(one.residues)) for one in ran.researcher.received[-1:]] == [
        ("statistics", len(NAMES) * slots(study) + 1)
    ]


def test_a_model_that_is_missing_is_told_before_anybody_is_waited_for(tmp_path, monkeypatch, folder, study):
    gone = a_study(folder, None, evaluate={"model": str(tmp_path / "gone.json"), "digest": study.evaluate.digest})
    said = []
    with pytest.raises(ModelError, match="no model can be read"):
        voxring.simulate(
            gone, {name: folder / f"{name}.csv" for name in "abc"}, notify=lambda who, what: said.append(who)
        )
    assert said == []
    with pytest.raises(ModelError, match="no model can be read"):
        party_totals(folder / "a.csv", gone)
    looks = iter([None])  # the batch's own
    monkeypatch.setattr("voxring.learn.evaluation.model_of", lambda study: next(looks, study) and model_of(study))
    with pytest.raises(ModelError, match="no model can be read"):
        party_batch(folder / "a.csv", gone, bad="skip")  # a worker on another machine lacks it: no row is to blame
    (folder / "gone.toml").write_text(
        f'name = "t"\nclasses = {{ fat = 3 }}\nparty = [{{ name = "a" }}, {{ name = "b" }}, {{ name = "c" }}]\n'
        f'evaluate = {{ model = "gone.json", digest = "{study.evaluate.digest}" }}\n'
    )
    refused = run("party", folder / "gone.toml", "--name", "a", "--manifest", folder / "a.csv", check=3)
    assert "no model can be read" in refused.stderr
