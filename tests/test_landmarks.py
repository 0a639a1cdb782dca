"""Landmarks that the parties agree on: of one image, in session, in a study of files, and what is refused."""

import json
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import pytest

import naive
from sessions import COIN, NYUL, TOTALS, agreeing_network, ask, until
from test_ledger import Site, approved, hashed
from voxring import (
    BoundError,
    ClassTotals,
    ImageError,
    LocalTotals,
    PeerError,
    Result,
    Study,
    StudyError,
    local_landmarks,
    local_totals,
    pooled,
    simulate,
    standard_scale,
)
from voxring.batch import Journal, party_batch
from voxring.errors import LocalProtocolError, ModelError
from voxring.landmarks import SCALE, check_landmarks, landmark_totals
from voxring.ring.message import decode
from voxring.ring.sheet import sheet
from voxring.session import bodies
from voxring.session.account import NoAccount
from voxring.session.as_party import _Process
from voxring.session.differencing import brought, brought_landmarks, objection
from voxring.session.party import Party
from voxring.simulation import pooled_result
from voxring.standardise import landmarks_in


def a_study(**options: object) -> Study:
    tables = {"foreground": "all", **NYUL, **options}
    return Study.of(name="t", classes={"x": 1}, window={"size": [1, 3, 3]}, standardise=tables)


OPTIONS = [
    {"foreground": "all"},
    {"foreground": "nonzero", "percentiles": [0, 10, 90, 100], "fraction_bits": 5},
    {"foreground": "above-mean", "percentiles": [2.5, 33.3, 97.5], "fraction_bits": 24},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("scale", [(1, 0), (Fraction(-1, 3), 7), (2, -1000)])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.int32])
def test_landmarks_of_images_equal_the_definition_wherever_they_are_cut(dtype, scale, options) -> None:
    rng = np.random.default_rng(5)
    study = a_study(**options)
    images = [rng.integers(0, top, (3, 7, 9)).astype(dtype) for top in (200, 90)]
    of = {"slope": scale[0], "intercept": scale[1]}
    found = sum((local_landmarks(image, study, **of) for image in images), LocalTotals())
    tables = NYUL | options
    assert standard_scale(found, study) == naive.standard_scale([(image, *scale) for image in images], tables)
    parts = (images[0][:1], images[0][1:, :2], images[0][1:, 2:])
    assert landmarks_in(lambda: parts, images[0].dtype, study, **of) == local_landmarks(images[0], study, **of)


def test_landmarks_depend_on_neither_scale_nor_unit_of_the_intensities() -> None:
    image = np.random.default_rng(1).integers(0, 4000, (4, 9, 9), np.int16)
    here = local_landmarks(image, a_study())[SCALE].statistics
    assert local_landmarks(image, a_study(), slope=0.25, intercept=-70)[SCALE].statistics == here
    assert local_landmarks(image.astype(np.float32) / 8, a_study())[SCALE].statistics == here  # exact in binary


@pytest.mark.parametrize(
    ("image", "options", "error"),
    [
        (np.zeros((3, 3), np.int16), {}, "two percentiles of the image are one intensity"),
        (np.array([[1, 1, 1, 2]], np.uint8), {"percentiles": [0, 25, 50, 100]}, "two percentiles of the image"),
        (np.zeros((3, 3), np.int16), {"foreground": "nonzero"}, "the foreground is empty"),
        (np.array([[1.0, np.nan]]), {}, "finite voxels"),
    ],
)
def test_an_image_without_landmarks_is_refused(image, options, error) -> None:
    with pytest.raises(ImageError, match=error):
        local_landmarks(image, a_study(**options))


def test_an_image_of_slope_0_is_refused() -> None:
    with pytest.raises(ImageError, match="slope is 0"):
        local_landmarks(np.arange(9, dtype=np.int16).reshape(3, 3), a_study(), slope=0)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"percentiles": [1, 99]}, "expected 3 to 256"),
        ({"landmarks": "Agree"}, "landmarks"),
        ({"landmarks": ["0/1", "1/0", "1/2", "1/1"]}, "landmarks"),
        ({"landmarks": ["0/1", "2/3", "1/2", "1/1"]}, "expected rising numbers"),
        ({"landmarks": [0, "1/3", float("nan"), 1]}, "expected finite numbers"),
        ({"landmarks": ["0/1", "1/1"]}, "one for each percentile"),
    ],
)
def test_studies_that_cannot_be_agreed_are_refused(options, error) -> None:
    with pytest.raises(StudyError, match=error):
        a_study(**options)


def test_the_agreed_study_has_the_scale_exactly_and_another_digest() -> None:
    study = a_study()
    scale = (Fraction(0), Fraction(1, 3), Fraction(2**70, 2**71 + 1), Fraction(1))
    agreed = study.with_landmarks(scale)
    assert agreed.standardise.targets == scale
    assert (study.agrees, agreed.agrees) == (True, False)
    assert agreed.digest != study.digest
    with pytest.raises(StudyError, match="have yet to agree on the landmarks"):
        local_totals(np.arange(12, dtype=np.int16).reshape(3, 4), np.ones((3, 4), np.uint8), study)
    with pytest.raises(StudyError, match="do not rise"):
        standard_scale(LocalTotals({SCALE: ClassTotals(sum=2, patients=1, statistics=(7, 7))}), study)
    with pytest.raises(StudyError, match="fewer than 1 patients"):
        standard_scale(LocalTotals(), study)


# In session.


def test_the_parties_agree_on_the_scale_before_anything_of_a_class_is_summed() -> None:
    network = agreeing_network("abcd", collusion=2)
    network.skipped["b"] = 2
    network.finish()
    everybody = sum(network.landmarks.values(), LocalTotals())
    scale = standard_scale(everybody, network.study)
    assert network.researcher.answer == pooled(sum((TOTALS[n] for n in "abcd"), LocalTotals()), network.study)
    assert network.researcher.scale == scale
    learned = network.researcher.view.learned
    assert learned["images", SCALE] == everybody[SCALE].sum
    assert learned["patients", SCALE] == everybody[SCALE].patients
    assert learned["landmarks", SCALE] == everybody[SCALE].statistics
    assert {of for _, of in learned} == {SCALE, "lesion", "liver", "rare", "b"}
    for party in network.parties.values():
        heard = party.heard()
        assert heard.scale == scale
        assert party.agreed.standardise.targets == scale
        assert [seen.sum for seen in heard.view.received] == [
            name for name in ("images", "landmarks", "voxels", "sum", "sdsum") for _ in range(2)
        ]
    assert max(map(len, network.seen)) <= network.researcher.plan.largest_frame


def test_a_party_without_images_brings_zeros() -> None:
    network = agreeing_network()
    network.landmarks["b"] = LocalTotals()
    network.finish()
    assert network.researcher.scale == standard_scale(sum(network.landmarks.values(), LocalTotals()), network.study)


def test_with_too_few_patients_no_landmark_is_opened() -> None:
    network = agreeing_network(min_patients=100)
    network.finish()
    assert [*map(type, network.errors)] == [PeerError]
    assert "fewer than 100 patients have images in all" in str(network.errors[0])
    assert not network.researcher.may_start_over
    shares = {m.sum for m in map(partial(decode, limit=10**6), network.seen) if m.kind == "share"}
    assert shares == {"images"}


@pytest.mark.parametrize("keeps_coin", [False, True])
@pytest.mark.parametrize("state", ["surveying", "surveyed", "numbered", "levelled", "computing", "ready", "counted"])
def test_a_session_that_fails_after_the_scale_was_agreed_is_followed_by_another(state: str, keeps_coin: bool) -> None:
    network = agreeing_network(coins=dict.fromkeys("abc", COIN) if keeps_coin else None)
    until(network, "b", state)
    assert network.researcher.may_start_over or network.researcher.step == "greeting"
    network.start_over()
    network.landmarks["c"] = landmark_totals(4, 1, (5, 9))  # c was started again with other images
    network.finish()
    scale = standard_scale(sum(network.landmarks.values(), LocalTotals()), network.study)
    assert {network.researcher.scale, *(party.heard().scale for party in network.parties.values())} == {scale}


def test_after_n_is_open_nothing_starts_over() -> None:
    network = agreeing_network()
    until(network, "b", "released")
    assert not network.researcher.may_start_over


def test_totals_by_a_scale_of_a_session_that_failed_are_dropped() -> None:
    party = agreeing_network().parties["a"]
    process = _Process(party, None, 60.0, lambda what: None, NoAccount())
    for scale, kept in (((0, 1, 2, 4), False), ((0, 1, 2, 4), True), ((0, 1, 3, 4), False)):
        party.scale = tuple(Fraction(n, 4) for n in scale)
        process._totals = LocalTotals()
        assert process._agreed().standardise.targets == party.scale
        assert (process._totals is not None) == kept


@pytest.mark.parametrize(
    "landmarks",
    [
        LocalTotals({SCALE: ClassTotals(9, 1, 5, 0, 1, (3,))}),
        LocalTotals({SCALE: ClassTotals(9, 1, 5, 0, 1, (9, 3))}),
        LocalTotals({SCALE: ClassTotals(9, 1, 5, 0, 1, (9, 2**16 + 1))}),
        LocalTotals({SCALE: ClassTotals(9, 1, 5, 0, 1, (-1, 4))}),
        LocalTotals({SCALE: ClassTotals(9, 1, 5, 0, 2, (1, 4))}),
        LocalTotals({SCALE: ClassTotals(9, 10**6 + 1, 5, 0, 2, (1, 4))}),
    ],
)
def test_landmarks_that_no_images_have_are_refused_before_anything_is_sent(landmarks: LocalTotals) -> None:
    network = agreeing_network()
    party = until(network, "a", "surveyed")
    with pytest.raises(LocalProtocolError, match="handed in once"):
        party.supply_landmarks(network.landmarks["a"])
    with pytest.raises(BoundError, match="nothing was sent"):
        check_landmarks(landmarks, network.study)
    network = agreeing_network()
    network.landmarks["b"] = landmarks
    with pytest.raises(BoundError):
        network.finish()


def test_the_researcher_refuses_landmarks_that_no_images_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxring.session.party.check_landmarks", lambda landmarks, study: None)
    network = agreeing_network()
    mine = network.landmarks["b"][SCALE]
    network.landmarks["b"] = LocalTotals({SCALE: replace(mine, statistics=(10**9, 0))})
    network.finish()
    assert "landmarks that no images can have" in str(network.errors[0])
    assert not network.researcher.may_start_over


@pytest.mark.parametrize(
    ("scale", "error"),
    [
        ((0, Fraction(1, 2), 1), "one for each percentile"),
        ((0, Fraction(1, 2), Fraction(1, 3), 1), "rising"),
        ((0, Fraction(1, 3), Fraction(1, 2), 2), "from 0 to 1"),
        ((-1, Fraction(1, 3), Fraction(1, 2), 1), "from 0 to 1"),
    ],
)
def test_a_party_refuses_a_scale_that_cannot_be(scale: tuple, error: str) -> None:
    network = agreeing_network()
    until(network, "a", "levelled")
    assert error in ask(network, "scale", "a", bodies.write_scale([Fraction(one) for one in scale]))
    assert network.parties["a"].state == "levelled"


def test_a_scale_comes_when_landmarks_were_summed_and_in_no_other_study() -> None:
    network = agreeing_network()
    party: Party = until(network, "a", "surveyed")
    good = bodies.write_scale([Fraction(0), Fraction(1, 3), Fraction(1, 2), Fraction(1)])
    assert "early or late" in ask(network, "scale", "a", good)
    assert party.scale == ()
    with pytest.raises(Exception, match="lowest terms"):
        bodies.read_scale(b"\x91\x92\xc4\x01\x02\xc4\x01\x04")


def test_the_sheet_says_what_the_scale_tells() -> None:
    text = str(sheet(agreeing_network(min_patients=4).study))
    assert "The standard scale" in text
    assert "2 percentiles of an image's foreground stand between" in text
    assert "With fewer than 4 patients in all" in text
    assert "each of the five sums" in text
    plain = Study.of(name="t", classes={"x": 1})
    assert "The standard scale" not in [section.title for section in sheet(plain).sections]


# What a party brings to two runs.


@pytest.mark.parametrize(
    ("first", "second", "changed", "refused"),
    [
        ("abcd", "abcd", {}, False),
        ("abcd", "abc", {}, True),
        ("abcd", "abc", {"percentiles": (1.0, 24.0, 50.0, 99.0)}, True),
        ("abcd", "abefg", {}, False),
        ("abcd", "Abcd", {}, True),
    ],
)
def test_a_run_whose_landmarks_are_too_close_to_an_earlier_ones_is_refused(first, second, changed, refused) -> None:
    """A capital letter is the same patient after its image was changed."""

    def bring(patients: str, options: dict) -> object:
        study = Study.of(
            name="t",
            classes={"x": 1},
            standardise=NYUL | options,
            privacy={"min_patients": 3},
            party=[{"name": name} for name in "klm"],
        )
        shift = len(options)
        found = [landmark_totals(9, ord(one), (ord(one) + shift, 500)) for one in patients]
        return brought_landmarks(study, found, hashed)

    assert (objection(bring(first, {}), bring(second, changed)) is not None) == refused


def test_landmarks_and_totals_are_no_runs_of_one_question() -> None:
    tables = {"name": "t", "classes": {"x": SCALE}, "standardise": NYUL}
    study = Study.of(**tables, party=[{"name": name} for name in "klm"])
    totals = [LocalTotals({"x": ClassTotals(9, 1, 5, 7, 1)})]
    agreed = study.with_landmarks([Fraction(n, 3) for n in range(4)])
    assert objection(brought_landmarks(study, totals, hashed), brought(agreed, totals, hashed)) is None


# With files.


@pytest.fixture
def site(tmp_path) -> Site:
    site = Site(tmp_path, "abc")
    party_batch(site.manifest("a"), Study.of(name="t", classes={"lesion": 1}, window={"size": 3}))  # compiles
    return site


def a_study_of_files(**privacy: int) -> Study:
    return Study.of(
        name="t",
        classes={"lesion": 1, "liver": 2},
        window={"size": 3},
        standardise={**NYUL, "fraction_bits": 10},
        privacy=privacy,
        party=[{"name": name} for name in "abc"],
    )


def images_of(site: Site) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    return [
        [tuple(np.load(site.folder / n / f"{kind}-{i}.npy") for kind in ("scan", "truth")) for i in site.images[n]]
        for n in "abc"
    ]


def test_a_simulated_study_equals_the_definition_and_its_result_can_be_read_again(site: Site, tmp_path) -> None:
    study = a_study_of_files()
    manifests = {name: site.manifest(name) for name in "abc"}
    run = simulate(study, manifests)
    parties = images_of(site)
    options = {**NYUL, "fraction_bits": 10}
    scale = naive.standard_scale([(image,) for images in parties for image, _ in images], options)
    truth = naive.algorithm_1(parties, study.classes, 3, "reflect", options={**options, "landmarks": scale})
    for name, one in run.answer.items():
        assert (one.voxels, one.sum, one.mean, one.sdsum, one.variance) == truth[name]
    assert run.document == pooled_result(study, manifests).document
    assert run.agreed.standardise.targets == scale
    run.save(tmp_path / "r.json")
    again = Result.load(tmp_path / "r.json", run.study)
    assert again.answer == run.answer
    assert again.agreed == run.agreed
    found = json.loads((tmp_path / "r.json").read_text())["standard_scale"]
    assert (found["images"], found["patients"]) == (sum(map(len, parties)), sum(map(len, parties)))
    found["landmarks"].pop()
    document = {**run.document, "standard_scale": found}
    with pytest.raises(ModelError, match="expected the standard scale"):
        replace(run, document=document).agreed  # noqa: B018


def test_a_real_run_notes_its_landmarks_and_a_second_one_reads_nothing(site: Site) -> None:
    study = a_study_of_files(min_patients=2)
    ended = site.run(study)
    assert not any(isinstance(one, Exception) for one in ended.values()), ended
    entries = site.entries("a")
    kinds = [kind for kind, _ in entries]
    assert kinds == ["opened", "approval", "session", "brought", "phase", "brought", "phase", "phase", "end"]
    assert [one["phase"] for kind, one in entries if kind == "phase"] == ["standard scale", "n", "μ"]
    assert dict(entries)["end"]["given"] == ["images", "landmarks", "voxels", "sum", "sdsum"]
    first = [list(one["brought"]["classes"]) for kind, one in entries if kind == "brought"]
    assert first == [[SCALE], ["lesion", "liver"]]
    agreed = study.with_landmarks(ended["a"].scale)
    questions = [one["brought"]["question"] for kind, one in entries if kind == "brought"]
    assert questions == [brought_landmarks(study, [], hashed).question, brought(agreed, [], hashed).question]
    again = site.run(study)
    assert again["R"] == ended["R"]
    site.images["a"].pop()  # one patient fewer: refused before a landmark leaves
    refused = site.run(study)
    assert isinstance(refused["a"], StudyError)
    assert "'standard scale': images of fewer than privacy.min_patients = 2" in str(refused["a"])
    assert dict(site.entries("a"))["end"]["given"] == []


def test_no_landmark_leaves_that_the_ledger_was_not_asked_about(tmp_path) -> None:
    network = agreeing_network()
    account = approved(tmp_path, "a", network.study)
    with pytest.raises(LocalProtocolError, match="not those that were added up"):
        account.admit_landmarks(bytes(16), network.landmarks["a"])
    party = until(network, "a", "numbered")
    shares = [one for one in network.seen if decode(one, limit=10**6).sum == "images"]
    account.admit(party.session, account.add_up([]))
    with pytest.raises(LocalProtocolError, match="after what it is made of was admitted"):
        account.sends(shares[0])


def test_the_journal_knows_landmarks_and_totals_by_the_scale_they_are_of(site: Site, tmp_path) -> None:
    study = a_study_of_files()
    count = len(site.images["a"])

    def run(of: Study) -> tuple[LocalTotals, int]:
        with Journal(tmp_path / "state", of, "a") as journal:
            batch = party_batch(site.manifest("a"), of, journal=journal)
        return batch.totals, batch.known

    landmarks, known = run(study)
    assert known == 0
    assert run(study) == (landmarks, count)
    one, other = (study.with_landmarks([Fraction(0), Fraction(1, n), Fraction(1, 2), Fraction(1)]) for n in (3, 4))
    totals, known = run(one)
    assert known == 0
    assert run(other)[1] == 0
    assert run(one) == (totals, count)
    assert run(study) == (landmarks, count)
