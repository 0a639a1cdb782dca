"""Logistic regression among parties: each step a message of weights and a secure sum, as of all voxels in one place."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression

from naive_classifiers import logistic_step as naive_step
from sessions import COIN, NYUL, Network, ask, until
from test_classify import hospital
from test_session_sockets import Meeting, run_in_thread
from voxring import features
from voxring.cli.study import check
from voxring.cli.train import train
from voxring.engine import local_totals, planes_needed
from voxring.errors import BoundError, ImageError, LocalProtocolError, ModelError, RemoteProtocolError, StudyError
from voxring.features import feature_maps
from voxring.landmarks import landmark_totals
from voxring.learn import Model, Moments, steps
from voxring.learn.logistic import LOGISTIC, Fitted, Newton, begin, fit, fitted_of, largest, zero
from voxring.report import result_report
from voxring.result import Result
from voxring.ring.disclosure import disclosure
from voxring.ring.message import decode, encode, step_name
from voxring.ring.sheet import logistic_warnings, moduli, sheet
from voxring.session import Account, Ledger, bodies, run_researcher
from voxring.session import plan as plans
from voxring.session.account import NoAccount
from voxring.session.as_party import _Process
from voxring.session.plan import Plan
from voxring.statistics import layout, slots
from voxring.study import AtWeights, Study
from voxring.totals import LocalTotals, Statistics, pooled

CLASSES = {"fat": 3, "liver": 5, "bone": 9}
SHAPE = (4, 8, 9)
IMAGES = {name: [hospital(100 + 2 * place + k, SHAPE) for k in range(2)] for place, name in enumerate("abcde")}
NOISE = np.random.default_rng(5)
for images in IMAGES.values():  # so that classes overlap
    for k, (image, truth) in enumerate(images):
        images[k] = (image + NOISE.normal(0, 400, SHAPE)).astype(np.int16), truth
TABLES = {
    "name": "t",
    "classes": CLASSES,
    "window": {"size": 3},
    "standardise": {"method": "rescale", "range": (-2000.0, 2000.0)},
    "bounds": {"voxels_per_party": 10**6},
    "feature": [{"kind": "intensity"}, {"kind": "mean", "window": 3}],
    "statistics": {"gram": True},
    "logistic": {"steps": 15},
}


def a_study(names="abc", **tables):
    return Study.of(**TABLES | {"party": [{"name": name} for name in names]} | tables)


def totals_of(name, study):
    return sum((local_totals(image, truth, study) for image, truth in IMAGES[name]), LocalTotals())


def network(study, **options):
    made = Network(study, {name: totals_of(name, study) for name in study.parties}, **options)
    made.step = totals_of
    return made


def ended(study, **options):
    run = network(study, **options)
    run.finish()
    assert run.errors == []
    return run


def everybody(study, names="abc"):
    return sum((totals_of(name, study) for name in names), LocalTotals())


def in_the_open(study):
    answer = pooled(everybody(study, study.parties), study)
    released = {name: one for name, one in answer.items() if isinstance(one, Statistics)}
    return fit(study, released, lambda at: everybody(at, study.parties))


def result_of(run):
    researcher = run.researcher
    return Result.of(researcher.answer, run.study, fitted=fitted_of(researcher.view.learned, run.study))


def voxels_of(study, names="abc"):
    """Features' integers and labels of all labelled voxels."""
    rows, labels = [], []
    for image, truth in (pair for name in names for pair in IMAGES[name]):
        chosen = np.isin(truth, list(study.classes.values()))
        rows.append(np.stack([one[chosen] for one in feature_maps(image, study)], -1))
        labels.append(truth[chosen])
    return np.concatenate(rows), np.concatenate(labels)


def steps_of(run):
    learned = run.researcher.view.learned
    return [learned[step_name(number), LOGISTIC] for number in range(1, learned["steps", LOGISTIC] + 1)]


@pytest.fixture(scope="module")
def run():
    return ended(a_study())


@pytest.mark.parametrize(
    ("names", "classes", "collusion", "sealed"),
    [("abc", CLASSES, 1, False), ("abcde", CLASSES, 3, False), ("abc", {"bone": 9, "fat": 3}, 1, True)],
)
def test_the_rings_give_the_weights_of_all_voxels_in_one_place_bit_for_bit(names, classes, collusion, sealed):
    study = a_study(names, classes=classes, privacy={"collusion": collusion})
    run = ended(study, sealed=sealed)
    found = fitted_of(run.researcher.view.learned, study)
    assert found == in_the_open(study)
    assert found.converged
    assert 4 <= found.steps < 15
    assert run.researcher.answer == pooled(everybody(study, names), study)


def test_every_step_sums_the_integers_of_the_definition(monkeypatch):
    few = {name: [(image[:1, :5, :6], truth[:1, :5, :6]) for image, truth in pairs] for name, pairs in IMAGES.items()}
    monkeypatch.setitem(globals(), "IMAGES", few)
    run = ended(a_study())
    integers, labels = voxels_of(run.study)
    assert len(labels) < 180
    places = [list(CLASSES.values()).index(label) for label in labels]
    heard = run.parties["b"].heard().view.learned
    assert heard["weights 1", LOGISTIC] == (0,) * 9
    flat = heard["weights 3", LOGISTIC]
    rows = tuple(flat[at : at + 3] for at in range(0, 9, 3))
    assert list(steps_of(run)[2]) == naive_step(integers.tolist(), places, rows)


def test_the_steps_begin_at_0_round_the_mean_of_all_voxels():
    study = a_study(logistic={"strength": 7.0})
    newton = begin(study, pooled(everybody(study), study))
    integers, labels = voxels_of(study)
    assert newton.rows == zero(3, 2)
    assert newton.voxels == len(labels)
    assert newton.centre == tuple(round(Fraction(int(column.sum()), len(labels))) for column in integers.T)
    assert (newton.units, newton.strength) == ((study.unit,) * 2, 7.0)
    assert newton.largest == (study.intensity_bound,) * 2  # means are no larger


def test_what_is_learned_is_what_the_sheet_says(run):
    count = len(steps_of(run))
    learned = run.researcher.view.learned
    told = {"n", "patients", "sum", "sdsum", "feature_sums", "gram", "steps", "converged", "weights"}
    assert {what for what, _ in learned} == told | {step_name(number) for number in range(1, count + 1)}
    for party in run.parties.values():
        heard = party.heard().view.learned
        assert {what for what, _ in heard} == {"n", "μ"} | {f"weights {n}" for n in range(1, count + 1)}
    (section,) = (one for one in sheet(run.study).sections if one.title == "Logistic regression")
    at = run.study.at(zero(3, 2), CLASSES)
    assert [row[:2] for row in section.rows] == [(block.name, str(block.size)) for block in layout(at)]
    assert {len(sums) for sums in steps_of(run)} == {slots(at)} == {9 + 36}
    assert f"as many as {15 * 45} numbers" in section.sentences[0]
    assert any("at most 15" in sentence for sentence in disclosure(run.study))
    agreed = Plan(run.study, COIN).step(bytes(16), 1, at)
    assert moduli(run.study)["step"] == (agreed.bound, agreed.residues.modulus)
    assert "Logistic regression" not in [one.title for one in sheet(a_study(logistic=None)).sections]
    (table,) = (one for one in sheet(run.study).sections if one.title == "Every message")
    assert {"weights", "share of step"} <= {row[0] for row in table.rows}
    assert "for each of at most 15 steps" in table.sentences[0]
    (table,) = (one for one in sheet(a_study(logistic=None)).sections if one.title == "Every message")
    assert not {"weights", "share of step"} & {row[0] for row in table.rows}
    few = a_study(privacy={"min_voxels": 5})
    (said,) = logistic_warnings(few)
    assert said.startswith("two classes of 10 voxels together may be released, and the steps tell 675 numbers")
    assert logistic_warnings(a_study(privacy={"min_voxels": 338})) == logistic_warnings(a_study(logistic=None)) == []


@pytest.mark.parametrize(("classes", "strength"), [(CLASSES, 1.0), ({"fat": 3, "bone": 9}, 30.0)])
def test_the_model_predicts_as_scikit_learn_fitted_on_all_voxels(tmp_path, classes, strength):
    study = a_study(classes=classes, logistic={"strength": strength})
    model = result_of(ended(study)).train("logistic")
    model.save(tmp_path / "model.json")
    assert Model.load(tmp_path / "model.json").digest == model.digest
    integers, labels = voxels_of(study)
    table = integers / study.unit
    other = LogisticRegression(C=strength, tol=1e-13, solver="newton-cholesky", max_iter=1000).fit(table, labels)
    scores = model.discriminant.scores(table)
    chances = np.exp(scores - scores.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    assert np.abs(chances - other.predict_proba(table)).max() < 1e-9
    predicted = np.array(model.values)[scores.argmax(1)]
    assert np.array_equal(predicted, other.predict(table))
    assert 0.3 < np.mean(predicted == labels) < 1  # the classes overlap
    maps = list(integers.T[:, None])
    given, shown = model.classify(maps)
    assert np.array_equal(given[0], predicted)
    assert np.abs(shown[:, 0].T - chances).max() < 1e-6  # maps hold float32


def test_voxels_of_a_withheld_class_are_in_no_sum():
    counts = {name: everybody(a_study())[name].voxels for name in CLASSES}
    rare = min(counts, key=counts.get)
    run = ended(a_study(privacy={"min_voxels": counts[rare] + 1}))
    kept = [name for name in CLASSES if name != rare]
    assert isinstance(run.researcher.answer[rare], str)
    alone = a_study(classes={name: CLASSES[name] for name in kept}, privacy={"min_voxels": counts[rare] + 1})
    assert fitted_of(run.researcher.view.learned, run.study) == in_the_open(alone)
    model = result_of(run).train("logistic")
    assert model.classes == tuple(kept)
    assert list(run.researcher._at.classes) == kept  # what bounds its sums, and sizes N


@pytest.mark.parametrize("released", [0, 1])
def test_fewer_than_two_classes_give_no_weights_and_no_step(released):
    counts = sorted(everybody(a_study())[name].voxels for name in CLASSES)
    run = ended(a_study(privacy={"min_voxels": counts[-1] + 1 - released}))
    assert sum(not isinstance(one, str) for one in run.researcher.answer.values()) == released
    assert not any(b"weights" in frame or b"step" in frame for frame in run.seen)
    document = result_of(run).document["logistic"]
    assert document == {"withheld": document["withheld"], "steps": 0, "strength": 1.0}
    assert "fewer than two classes" in document["withheld"]
    with pytest.raises(ModelError, match="has no weights: fewer than two classes"):
        result_of(run).train("logistic")


def test_no_more_steps_are_taken_than_the_study_allows(tmp_path):
    study = a_study(logistic={"steps": 2})
    run = ended(study)
    found = fitted_of(run.researcher.view.learned, study)
    assert (found.steps, found.converged) == (2, False)
    assert found == in_the_open(study)
    assert {len(party.steps) for party in run.parties.values()} == {2}
    result = result_of(run)
    result.save(tmp_path / "result.json")
    (tmp_path / "study.toml").write_text(toml(study))
    arguments = [tmp_path / "result.json", "--study", tmp_path / "study.toml", "--out", tmp_path / "model.json"]
    done = CliRunner().invoke(train, [*map(str, arguments), "--classifier", "logistic"])
    assert done.exit_code == 0, done.output
    assert "warning: the weights are not the optimum" in done.output
    assert Model.load(tmp_path / "model.json").discriminant.linear.shape == (3, 2)
    said = CliRunner().invoke(check, [str(tmp_path / "study.toml")]).output
    assert "steps    at most 2 of a logistic regression" in said
    assert "not the optimum yet" in result_report(result.document, study)
    assert Result.load(tmp_path / "result.json", study).train("logistic").classifier == "logistic"


def toml(study):
    document = json.loads(study.canonical())
    classes = ", ".join(f"{name} = {label}" for name, label in document["classes"].items())
    return "\n".join(
        [
            f'name = "t"\nclasses = {{ {classes} }}',
            '[window]\nsize = 3\n[standardise]\nmethod = "rescale"\nrange = [-2000.0, 2000.0]',
            "[bounds]\nvoxels_per_party = 1_000_000",
            '[[feature]]\nkind = "intensity"\n[[feature]]\nkind = "mean"\nwindow = 3',
            f"[statistics]\ngram = true\n[logistic]\nsteps = {study.logistic.steps}",
            *(f'[[party]]\nname = "{name}"' for name in study.parties),
        ]
    )


def test_a_result_without_weights_makes_no_logistic_model(run):
    result = result_of(run)
    without = Result(run.study, result.answer, {k: v for k, v in result.document.items() if k != "logistic"})
    with pytest.raises(ModelError, match=r"asked for no logistic regression.*write \[logistic\]"):
        without.train("logistic")
    changed = result.document["logistic"] | {"weights": result.document["logistic"]["weights"][:2]}
    with pytest.raises(ModelError, match="expected 3 times the weights of 2 features"):
        Result(run.study, result.answer, result.document | {"logistic": changed}).train("logistic")
    with pytest.raises(ModelError, match="expected weights as pairs"):
        Result(run.study, result.answer, result.document | {"logistic": {"weights": 3}}).train("logistic")


def test_where_nothing_fits_the_other_results_stand(monkeypatch):
    def singular(newton, sums):
        raise ModelError("singular")

    monkeypatch.setattr(Newton, "update", singular)
    study = a_study()
    run = ended(study)
    assert run.researcher.answer == pooled(everybody(study), study)
    document = result_of(run).document
    assert document["logistic"]["withheld"].startswith("no weights fit")
    assert document["logistic"]["steps"] == 1
    assert "no weights fit" in result_report(document, study)
    assert in_the_open(study) == Fitted((), 1, False)


def test_weights_that_a_party_must_not_answer_are_refused():
    run = network(a_study(logistic={"steps": 2}))
    party = until(run, "a", "fitting")
    good = zero(3, 2)

    def refused(rows, name="step 1"):
        return ask(run, "weights", "a", bodies.write_weights(rows), sum=name)

    assert "expected those of 'step 1', got 'step 2'" in refused(good, "step 2")
    assert "expected those of 'step 1', got ''" in refused(good, "")
    assert "expected 0 at the first step" in refused(((1, 0, 0), *good[1:]))
    assert "expected a row for each score" in refused(good[:2])
    assert "expected a row for each score" in refused(((0, 0),) * 3)
    assert "malformed" in ask(run, "weights", "a", b"\x90\xff", sum="step 1")
    assert "as few bytes as it needs" in ask(run, "weights", "a", b"\x91\x91\xc4\x02\x00\x00", sum="step 1")
    assert (party.state, party.steps) == ("fitting", [])
    party = until(run, "a", "stepped")
    assert "came early or late" in refused(good, "step 2")
    assert "a second, different 'weights' came" in refused(((1, 0, 0), *good[1:]))
    assert refused(good) == ""  # a repeat gets the same answer
    assert (party.state, len(party.steps)) == ("stepped", 1)
    while party.state != "fitting":
        run.ask()
        run.deliver()
    for large in (1 << 62, -(1 << 62)):
        assert "expected scores within 62 bits" in refused(((large, 0, 0), *good[1:]), "step 2")
    assert "expected scores within 62 bits" in refused((*good[:2], (0, 0, 1 << 78)), "step 2")  # in any row
    reach = (1 << 102) // largest(run.study)[0]  # the score of the largest value of a feature is 2^62
    assert "expected scores within 62 bits" in refused(((0, reach + 1, 0), *good[1:]), "step 2")
    party = until(run, "a", "fitting")
    run.finish()
    assert run.researcher.done
    second = until(network(a_study(logistic={"steps": 1})), "b", "fitting")
    assert second.steps == []


def test_no_step_follows_the_last_that_was_agreed():
    run = network(a_study(logistic={"steps": 1}))
    party = until(run, "a", "stepped")
    while party.state == "stepped":
        run.ask()
        run.deliver()
    assert party.state == "fitting"
    more = ask(run, "weights", "a", bodies.write_weights(zero(3, 2)), sum="step 2")
    assert "expected no more steps than logistic.steps" in more


def test_a_share_of_another_step_is_refused():
    run = network(a_study(), coins=dict.fromkeys("abc", COIN))
    first = run.parties["a"].plan.rings[0].members[1]
    party = until(run, first, "stepped")
    fits = {"digest": party.plan.binding, "ring": 0}
    for name in ("step 2", "step 9"):
        assert "came early or late: expected 'step 1'" in ask(run, "share", first, b"", sum=name, **fits)
    while party.state != "stepped" or len(party.steps) < 2:
        run.ask()
        run.deliver()
    old = ask(run, "share", first, b"", sum="step 1", **fits)
    assert old.startswith("a second, different 'share' came")
    assert party.state == "stepped"


@pytest.mark.parametrize("state", ["fitting", "stepping", "stepped"])
def test_nothing_starts_over_once_moments_are_known(state):
    run = network(a_study())
    if state == "stepping":
        step, run.step = run.step, None
        with pytest.raises(TypeError):
            until(run, "a", "never")
        run.step = step
        party = next(one for one in run.parties.values() if one.state == state)
    else:
        party = until(run, "a", state)
    said = ask(run, "again", party.name, run.researcher.session, session=bytes(15) + b"\1")
    assert "nothing starts over from there" in said
    party.lose("it lost the next in a ring")
    assert party.state == "failed"
    assert not run.researcher.may_start_over


def test_images_that_changed_end_the_session_before_anything_of_them_is_sent():
    run = network(a_study())
    image, truth = IMAGES["b"][0]
    changed = image.copy()
    changed[truth == 3] += 1

    def step(name, at):
        if name == "b":
            return local_totals(changed, truth, at) + local_totals(*IMAGES["b"][1], at)
        return totals_of(name, at)

    run.step = step
    with pytest.raises(ImageError, match=r"class .fat. has other totals than before: .* nothing of this step was sent"):
        run.finish()
    assert not run.parties["b"].outbox
    assert run.parties["b"].state == "stepping"


def test_sums_that_no_voxels_can_have_are_refused_here_and_there():
    run = network(a_study())

    def step(name, at):
        totals = totals_of(name, at)
        wrong = list(totals["fat"].statistics)
        wrong[0] = (totals["fat"].voxels << 40) + 1
        return LocalTotals(dict(totals.classes) | {"fat": replace(totals["fat"], statistics=tuple(wrong))})

    run.step = step
    with pytest.raises(BoundError, match="gradient is none that its voxels here can have"):
        run.finish()
    fine = network(a_study())
    until(fine, "a", "stepped")
    researcher = fine.researcher
    at = a_study().at(zero(3, 2), CLASSES)
    most = [most for block in ("gradient", "hessian") for most in bounds_of(block, at)]
    voxels = sum(everybody(a_study())[name].voxels for name in CLASSES)
    for place, block in ((0, "gradient"), (8, "gradient"), (9, "hessian"), (44, "hessian")):
        total = [0] * 45
        for sign in (1, -1):
            total[place] = sign * (voxels * most[place] + 1)
            with pytest.raises(RemoteProtocolError, match=f"{block} that n voxels cannot have"):
                researcher._finish_step(total)
    assert (step_name(1), LOGISTIC) not in researcher.view.learned


def test_what_the_researcher_is_told_of_a_step_that_fails():
    run = network(a_study())
    party = until(run, "a", "stepping")
    process = _Process(party, None, 20.0, lambda what: None, NoAccount())

    def unreadable(at):
        raise ImageError("scan.npy: it is damaged")

    with pytest.raises(ImageError):
        process._step(unreadable)
    assert process._reason == "it stopped while computing a step of the logistic regression"
    with pytest.raises(ImageError, match="has other totals than before"):
        process._step(lambda at: totals_of("b", at))
    assert process._reason == "its images changed, or its numbers leave the study's bounds"
    assert party.state == "stepping"
    process._step(lambda at: totals_of("a", at))
    assert (party.state, process._reason) == ("stepped", "it was stopped")
    with pytest.raises(LocalProtocolError, match="own step: handed in once, while stepping; this party is stepped"):
        party.supply_step(totals_of("a", party.at))


def test_each_session_of_an_account_counts_its_steps_anew(tmp_path):
    """Weights of the first step of a second session would else be left out as known."""
    account = Account(Ledger(tmp_path, "a"), a_study())
    account.approve(account._study.digest, how="test")
    for session in (1, 2):
        run = network(a_study())
        party = until(run, "a", "stepping")
        party.session = bytes([session]) * 16
        account.answered(party, ok(party))
        party.state = "fitting"
        account.answered(party, ok(party))
    account.ended(party)
    phases = [json.loads(entry.content)["phase"] for entry in account.ledger.verified() if entry.kind == "phase"]
    assert phases == ["weights 1"] * 2


def ok(party):
    return party._reply("ok", "researcher", party.session, b"weights step 1")


def test_weights_that_were_taken_at_an_earlier_step_are_not_taken_for_those_of_the_next():
    run = network(a_study())
    until(run, "a", "stepped")
    while (run.researcher.step, run.researcher._steps) != ("weighing", 2):
        run.ask()
        run.deliver()
    for name, party in run.parties.items():
        run.researcher.take(name, ok(party))
    assert run.researcher.step == "weighing"
    assert run.researcher._answered == set()
    run.researcher.take("a", run.parties["a"]._reply("ok", "researcher", run.researcher.session, b"weights step 2"))
    assert run.researcher._answered == {"a"}


@pytest.mark.parametrize("state", ["deviated", "stepping", "stepped", "spread"])
def test_weights_and_the_end_come_when_a_step_is_over(state):
    """While its own sums are due or under way, a party takes neither; nor weights before the moments, or for none."""
    run = network(a_study())
    party = until(run, "a", "fitting")
    party.state = state
    early = "'weights' came early or late"
    assert early in ask(run, "weights", "a", bodies.write_weights(zero(3, 2)), sum="step 1")
    if state != "spread":
        assert "'done' came early or late" in ask(run, "done", "a")
    assert (party.state, party.steps) == (state, [])


def test_where_one_class_is_released_nothing_is_fitted():
    """Steps with one class would sum what nobody was told of."""
    plan = Plan(a_study(), COIN)
    assert [plan.share_event("statistics", count) for count in (1, 2, 3)] == [
        "share statistics",
        "share statistics to fit",
        "share statistics to fit",
    ]


def test_a_step_without_noise_is_no_sum_of_a_study_with_differential_privacy():
    noisy = {"differential_privacy": {"epsilon": 1.0}, "privacy": {"voxels_per_patient": 9}}
    table = Study.of(name="t", classes={"a": 1}, **noisy).differential_privacy
    study = msgspec.structs.replace(a_study(), differential_privacy=table)
    with pytest.raises(LocalProtocolError, match="a sum of 45 values was given 0 noises"):
        Plan(study, COIN).step(bytes(16), 1, study.at(zero(3, 2), CLASSES))


def bounds_of(block, at):
    """How much one voxel adds at most: p − [class] is at most 1, p p' at most a quarter, both over 2^40."""
    sizes = [1, *largest(at)]
    if block == "gradient":
        return [size << 40 for size in sizes] * 3
    return [one * other << 38 for i, one in enumerate(sizes) for other in sizes[i:]] * 6


def test_a_long_vector_of_a_step_goes_in_chunks(monkeypatch):
    expected = fitted_of(ended(a_study("abcd")).researcher.view.learned, a_study("abcd"))
    monkeypatch.setattr(plans, "IN_CHUNKS", 0)
    run = ended(a_study("abcd"), sealed=True)
    assert fitted_of(run.researcher.view.learned, run.study) == expected
    names = [step_name(number) for number in range(1, expected.steps + 1)]
    assert run.researcher.view.in_chunks == ("voxels", "sum", "sdsum", "statistics", *names)
    assert run.parties["c"].heard().view.in_chunks == run.researcher.view.in_chunks


def heard_by_the_researcher(network, kind):
    """The answers of a kind that were ever under way to the researcher."""
    messages = [decode(frame, limit=10**7) for frame in network.seen]
    return [one for one in messages if (one.kind, one.receiver) == (kind, "researcher")]


def test_doors_that_come_again_in_a_later_sum_open_nothing(monkeypatch, run):
    monkeypatch.setattr(plans, "IN_CHUNKS", 0)
    again, replayed = network(a_study(), sealed=True), set()
    while not again.researcher.done:
        again.ask()
        again.deliver()
        streamed = again.researcher.streamed
        if streamed is not None and streamed.agreed.name not in replayed:
            replayed.add(streamed.agreed.name)
            for door in heard_by_the_researcher(again, "door"):
                again.researcher.take(door.sender, encode(door))
    assert {"voxels", "sum", "step 1", "step 2"} <= replayed
    assert fitted_of(again.researcher.view.learned, again.study) == fitted_of(run.researcher.view.learned, run.study)


def test_shares_that_come_again_in_a_later_sum_are_no_shares_of_it(run):
    again, replayed = network(a_study()), set()
    while not again.researcher.done:
        again.ask()
        again.deliver()
        step = again.researcher.step
        stepped = {name for name, party in again.parties.items() if party.state == "stepped"}
        if step == "stepping" and stepped and len(replayed) < 3:
            for old in heard_by_the_researcher(again, "status"):
                share = bodies.read_status(old.body).share
                if share and old.sender in stepped and share not in replayed:
                    replayed.add(share)
                    now = bodies.write_status(bodies.Status(state="stepped", share=share))
                    again.researcher.take(old.sender, encode(msgspec.structs.replace(old, body=now)))
                    assert again.researcher.step == step
    assert len(replayed) > 2
    assert fitted_of(again.researcher.view.learned, again.study) == fitted_of(run.researcher.view.learned, run.study)


def test_frames_have_room_for_the_largest_step_and_its_weights():
    classes = {f"c{number}": number for number in range(1, 30)}
    features = [{"kind": "mean", "window": size} for size in range(2, 65)] + [{"kind": "intensity"}]
    study = a_study(classes=classes, feature=features)
    plan = Plan(study, COIN)
    at = study.at(((-(1 << 62) + 1, *(((1 << 78) - 1,) * 64)),) * 29, classes)
    assert plan.largest_frame > len(bodies.write_weights(at.rows)) + 512
    many = a_study(classes={f"c{number}": number for number in range(1, 400)}, feature=features)
    row = -(1 << 62) + 1, *(((1 << 78) - 1,) * 64)
    assert (
        Plan(many, COIN).largest_frame > len(bodies.write_weights([row] * 399)) + 512
    )  # longer than any other message
    agreed = plan.step(bytes(16), 1, at)
    assert plan.in_chunks(agreed)
    assert plan.may_stream
    assert plan.longest >= agreed.residues.slots * agreed.residues.width
    small = a_study()
    agreed = Plan(small, COIN).step(bytes(16), 1, small.at(zero(3, 2), CLASSES))
    assert not Plan.in_chunks(agreed)
    assert Plan(small, COIN).largest_frame > agreed.residues.slots * agreed.residues.width + 512


def test_parties_that_agree_on_landmarks_take_the_steps_by_the_agreed_scale():
    study = a_study(standardise=NYUL)
    run = Network(study)
    run.landmarks = {name: landmark_totals(9, place, [20000 + place, 45000]) for place, name in enumerate("abc")}
    run.totals = {}
    seen = []

    def step(name, at):
        seen.append(at)
        return totals_of(name, at)

    run.step = step
    party = until_computing(run)
    agreed = party.agreed
    run.totals = {name: totals_of(name, agreed) for name in "abc"}
    run.finish()
    assert run.errors == []
    found = fitted_of(run.researcher.view.learned, study)
    assert found == in_the_open(agreed)
    assert {at.standardise.landmarks for at in seen} == {agreed.standardise.landmarks}


def until_computing(run):
    while True:
        for name, party in run.parties.items():
            if party.state == "surveying":
                party.supply_landmarks(run.landmarks[name])
        if all(party.state == "computing" for party in run.parties.values()):
            return run.parties["a"]
        for name, party in run.parties.items():
            run._open("researcher", name, run.researcher.request(name))
            if party.outbox:
                run._open(name, *party.outbox[0])
        if run.under_way:
            run.deliver()


def test_a_party_reads_no_more_of_an_image_than_features_need():
    image, truth = hospital(3, (9, 8, 9))
    truth[:4], truth[5:] = 0, 0
    study = a_study(window={"size": 1}, standardise={"method": "none"}, bounds={"intensity": 1 << 16})
    at = study.at(((5, 1 << 40, -(1 << 41)),) * 3, CLASSES)
    first, stop = planes_needed([(truth, tuple(CLASSES.values()))], image.dtype, at)
    assert (first, stop) == (3, 6)
    assert local_totals(image[first:stop], truth[first:stop], at) == local_totals(image, truth, at)
    nowhere = local_totals(image, np.zeros_like(truth), at)
    assert [nowhere[name].statistics for name in CLASSES] == [()] * 3
    flat = local_totals(image[4], truth[4], at)
    assert [flat[name].voxels for name in CLASSES] == [local_totals(image, truth, at)[name].voxels for name in CLASSES]
    plane = local_totals(image[4:5], truth[4:5], at)  # which `reflect` repeats along a window, so that means are those
    assert [flat[name].statistics for name in CLASSES] == [plane[name].statistics for name in CLASSES]
    halved = local_totals(image, truth, at, slope=2, intercept=-7)
    assert halved == local_totals(2 * image.astype(np.int32) - 7, truth, at)


def test_a_step_is_the_same_in_parts_and_in_layers(monkeypatch):
    image, truth = IMAGES["d"][0]
    study = a_study()
    at = study.at(((5, 1 << 52, -(1 << 53)), (-9, 1 << 53, 7), (1 << 30, 0, 1 << 54)), CLASSES)
    whole = local_totals(image, truth, at)
    layers = [
        local_totals(image, truth * (truth == CLASSES[name]), at, labels={name: CLASSES[name]}) for name in CLASSES
    ]
    assert sum(layers, LocalTotals()) == whole
    monkeypatch.setattr(steps, "TOGETHER", 7)
    monkeypatch.setattr(features, "SLAB", 1)
    assert local_totals(image, truth, at, threads=2) == whole


def test_processes_take_the_steps_and_a_ledger_keeps_which_weights_came(tmp_path, run):
    study, meeting = a_study(), Meeting("abc")
    account = Account(Ledger(tmp_path, "a"), study)
    account.approve(study.digest, how="test")
    options = {"study": study, "timeout": 20.0}
    with ThreadPoolExecutor(3) as pool:
        parties = [
            run_in_thread(
                meeting,
                pool,
                name,
                local_totals=lambda name=name: (
                    account.add_up([totals_of("a", study)]) if name == "a" else totals_of(name, study)
                ),
                step=lambda at, name=name: totals_of(name, at),
                **options | ({"ledger": account} if name == "a" else {}),
            )
            for name in "abc"
        ]
        assert meeting.all_here.wait(10)
        answer, view = run_researcher(study, peers=meeting.where, timeout=20, insecure=True)
        heard = [party.result() for party in parties]
    assert answer == run.researcher.answer
    assert fitted_of(view.learned, study) == fitted_of(run.researcher.view.learned, study)
    count = view.learned["steps", LOGISTIC]
    entries = [(entry.kind, json.loads(entry.content)) for entry in Ledger(tmp_path, "a").verified()]
    phases = [one for kind, one in entries if kind == "phase"]
    assert [one["phase"] for one in phases] == ["n", "μ", *(f"weights {number}" for number in range(1, count + 1))]
    for number, phase in enumerate(phases[2:], 1):
        flat = heard[0].view.learned[f"weights {number}", LOGISTIC]
        body = bodies.write_weights([flat[at : at + 3] for at in range(0, 9, 3)])
        assert phase["weights"] == hashlib.sha256(body).hexdigest()
        assert phase["n"] == {name: one.voxels for name, one in answer.items()}
        kinds = {row[0] for row in phase["sent"]}
        assert "ok" in kinds  # what left since the weights before; the share, to whoever asked or to the successor
        assert kinds & {"share", "status"}
    assert "weights" not in phases[0]
    assert entries[-1][1]["given"] == [
        "voxels",
        "sum",
        "sdsum",
        "statistics",
        *(step_name(number) for number in range(1, count + 1)),
    ]


def test_steps_are_computed_where_the_study_asks_for_them_alone():
    for study, step in ((a_study(), None), (a_study(logistic=None), totals_of)):
        meeting = Meeting("a")
        with ThreadPoolExecutor(1) as pool, pytest.raises(StudyError, match="takes what computes its steps"):
            run_in_thread(meeting, pool, "a", study=study, step=step).result()


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"statistics": {}}, r"logistic: statistics\.gram is false, .*: write gram = true"),
        ({"classes": {"fat": 3}}, "logistic: expected at least 2 classes, got 1: name another"),
        ({"logistic": {"steps": 41}}, r"logistic\.steps: expected a whole number from 1 to 40, got 41"),
        ({"logistic": {"strength": 0.0}}, r"logistic\.strength: expected 1e-12 to 1e12, got 0\.0: 1 is usual"),
        ({"logistic": {"weights": [[1]]}}, r"logistic\.weights: expected steps or strength, got weights"),
        ({"standardise": {}}, "expected features of integers below 2\\^40, got 49 bits for 'intensity': lower"),
        (
            {"feature": [{"kind": "mean", "window": size} for size in range(1, 66)]},
            "logistic: expected at most 64 features, got 65",
        ),
        (
            {"differential_privacy": {"epsilon": 1.0}, "privacy": {"voxels_per_patient": 9}},
            "differential privacy does not cover it",
        ),
    ],
)
def test_studies_whose_steps_cannot_be_taken_are_refused(tables, said):
    with pytest.raises(StudyError, match=said):
        a_study(**tables)


def test_differential_privacy_refuses_a_logistic_regression_by_name():
    from voxring.study.faults import _noise_faults

    noisy = {"differential_privacy": {"epsilon": 1.0}, "privacy": {"voxels_per_patient": 9}}
    table = Study.of(name="t", classes={"a": 1}, **noisy).differential_privacy
    study = msgspec.structs.replace(a_study(), differential_privacy=table)
    assert any(key == "logistic" and "does not cover it" in said for key, said in _noise_faults(study))


def test_the_digest_follows_the_table_and_a_study_without_it_keeps_its_own():
    plain = a_study(logistic=None)
    assert b"logistic" not in plain.canonical()
    assert len({plain.digest, a_study().digest, a_study(logistic={"steps": 9}).digest}) == 3
    at = a_study().at(((1 << 77, -3, 0),), ["fat", "bone"])
    assert isinstance(at, AtWeights)
    assert at.rows == ((1 << 77, -3, 0),)
    assert (at.classes, slots(at)) == ({"fat": 3, "bone": 9}, 9)
    assert at.digest != a_study().at(((1 << 77, -3, 1),), ["fat", "bone"]).digest
    assert "at most 15 steps" in a_study()._repr_html_()


def test_a_model_says_where_its_weights_come_from(run):
    moments = Moments.of_result(result_of(run).document, run.study)
    weights = result_of(run).document["logistic"]["weights"]
    model = Model.of(run.study, moments, "logistic", weights=weights)
    assert model.digest == result_of(run).train("logistic").digest
    found = fitted_of(run.researcher.view.learned, run.study)
    exact = Fraction(found.rows[0][1] * run.study.unit, 1 << 72)
    assert weights[0][1] == [str(exact.numerator), str(exact.denominator)]
