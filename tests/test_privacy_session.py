"""Differential privacy in session: noise in shares, what may be released of it, and the budget in the ledger."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from sessions import DOORS, Network, a_study, some_totals, until
from test_statistics_session import TABLES, asking, with_statistics
from voxring.batch import party_batch
from voxring.cli import preflight
from voxring.cli import voxring as command
from voxring.cli.report import print_noise
from voxring.errors import BoundError, LocalProtocolError, StudyError
from voxring.haralick import haralick
from voxring.privacy import QUANTITIES, Budget, Noise
from voxring.report import result_report
from voxring.result import Result
from voxring.ring.disclosure import disclosure
from voxring.ring.noisy import NoisySum, shares_of_noise
from voxring.ring.sheet import moduli, sheet
from voxring.session import plan as plans
from voxring.session.account import Account, budget_of, exact_runs, spent
from voxring.session.ledger import Ledger
from voxring.session.party import Party
from voxring.session.plan import Plan
from voxring.session.researcher import TOO_NOISY
from voxring.statistics import derived, integers_of, layout, slots
from voxring.study import Study
from voxring.totals import ClassTotals, LocalTotals, mean_of

GAUSSIAN = {"epsilon": 50.0, "delta": 1e-6, "mechanism": "gaussian"}


def noisy(names: str = "abc", *, table: dict | None = None, **privacy: int) -> Study:
    tables = msgspec.to_builtins(a_study(names, **privacy))
    return Study.of(
        **tables
        | {
            "privacy": tables["privacy"] | {"voxels_per_patient": 25},
            "standardise": {"method": "none", "fraction_bits": 16},
            "bounds": {"voxels_per_party": 10**6, "intensity": 1},
            "differential_privacy": table or {"epsilon": 100.0},
        }
    )


MINE = {name: some_totals(seed) for seed, name in enumerate("abcde")}


class Noisy(Network):
    """A network whose parties' shares of noise are recorded, or made up."""

    def __init__(self, study: Study, made_up=None) -> None:
        self.drawn: dict[str, list[list[int]]] = {}
        self.made_up = made_up
        super().__init__(study, MINE)

    def _party(self, name: str) -> Party:
        def draw(noises: Sequence[Noise], random) -> list[int]:
            shares = shares_of_noise(noises, random)
            if self.made_up is not None:
                shares = self.made_up(name, len(self.drawn.get(name, [])), shares)
            self.drawn.setdefault(name, []).append(shares)
            return shares

        keep = partial(self.coins.__setitem__, name)
        party = Party(self.study, name, self.draw, coin=self.coins.get(name), keep=keep, noise=draw)
        party.doors = DOORS
        return party

    def noise(self, sum_number: int) -> list[int]:
        """All shares of a sum, added up slot by slot."""
        return [sum(column) for column in zip(*(drawn[sum_number] for drawn in self.drawn.values()), strict=True)]


def quiet(name: str, number: int, shares: list[int]) -> list[int]:
    return [0] * len(shares)


@pytest.mark.parametrize(("names", "collusion"), [("abc", 1), ("abcde", 3)])
@pytest.mark.parametrize("table", [{"epsilon": 100.0}, GAUSSIAN])
def test_results_less_the_shares_of_noise_are_the_pooled_integers(names: str, collusion: int, table: dict) -> None:
    study = noisy(names, table=table, collusion=collusion)
    network = Noisy(study)
    network.finish()
    assert network.errors == []
    assert network.researcher.done
    assert [len(drawn) for drawn in network.drawn.values()] == [3] * len(names)  # once for each sum
    together = sum((MINE[name] for name in names), LocalTotals())
    learned = network.researcher.view.learned
    first = network.noise(0)
    for number, name in enumerate(study.classes):
        assert learned["n", name] - first[number] == together[name].voxels
        assert learned["patients", name] - first[len(study.classes) + number] == together[name].patients
    means = network.parties["a"].heard().means
    assert {"lesion", "liver"} <= set(means)
    for number, (name, mean) in enumerate(means.items()):
        total = learned["sum", name] * study.denominator - network.noise(1)[number]
        assert total == together[name].sum
        of_sdsum = learned["sdsum", name] * (mean.denominator * study.unit) ** 2 - network.noise(2)[number]
        assert of_sdsum == together[name].sdsum(mean, study.unit)
    shares = [share for drawn in network.drawn.values() for one in drawn for share in one]
    assert sum(share != 0 for share in shares) > 0.4 * len(shares)


ASKED = TABLES | {
    "statistics": TABLES["statistics"] | {"histogram": {"bins": 4, "range": (-0.5, 0.5)}},
}


def noisy_asking(table: dict | None = None) -> tuple[Study, dict[str, LocalTotals]]:
    """A study that asks for everything additive, and totals that have it."""
    study = asking(noisy(table=table), ASKED)
    return study, {name: with_statistics(MINE[name], study, seed) for seed, name in enumerate("abc")}


class NoisyAsking(Noisy):
    def __init__(self, table: dict | None = None, made_up=None) -> None:
        study, totals = noisy_asking(table)
        super().__init__(study, made_up)
        self.totals = totals


@pytest.mark.parametrize("chunks", [False, True])
@pytest.mark.parametrize("table", [{"epsilon": 100.0}, GAUSSIAN])
def test_additive_statistics_less_the_shares_of_noise_are_the_pooled_integers(
    table: dict, chunks: bool, monkeypatch
) -> None:
    if chunks:
        monkeypatch.setattr(plans, "IN_CHUNKS", 0)
    network = NoisyAsking(table)
    network.finish()
    assert (network.errors, network.researcher.done) == ([], True)
    study, learned = network.study, network.researcher.view.learned
    together, noise = sum(network.totals.values(), LocalTotals()), network.noise(3)
    means = list(network.parties["a"].heard().means)
    assert len(noise) == slots(study) * len(means) > 0
    assert sum(share != 0 for share in noise) > 0.9 * len(noise)
    for place, name in enumerate(means):
        mine = noise[place * slots(study) : (place + 1) * slots(study)]
        told = [value for block in layout(study) for value in learned[block.name, name]]
        assert tuple(a - b for a, b in zip(told, mine, strict=True)) == together[name].statistics
    answer = network.researcher.answer
    document = Result.of(answer, study).document
    for name, one in answer.items():
        if not isinstance(one, str):
            assert integers_of(document["classes"][name]["statistics"], study) == one.additive


def test_a_class_that_noise_leaves_nothing_of_has_no_statistics_and_others_have() -> None:
    def made_up(name: str, number: int, shares: list[int]) -> list[int]:
        return [-(10**30) if (number, place) == (2, 0) else 0 for place, _ in enumerate(shares)]

    network = NoisyAsking(made_up=made_up)
    network.finish()
    assert network.errors == []
    assert TOO_NOISY in network.researcher.answer["lesion"]
    together = sum(network.totals.values(), LocalTotals())
    assert network.researcher.answer["liver"].additive == together["liver"].statistics


@pytest.mark.parametrize("size", [-(10**9), 10**9])
def test_what_is_read_of_statistics_that_are_nothing_but_noise_is_undefined_or_a_number(size: int, tmp_path) -> None:
    def made_up(name: str, number: int, shares: list[int]) -> list[int]:
        return [size * (-1) ** place * (name == "a" and number == 3) for place, _ in enumerate(shares)]

    network = NoisyAsking(made_up=made_up)
    network.finish()
    result = Result.of(network.researcher.answer, network.study)
    statistics = result.document["classes"]["liver"]["statistics"]
    assert min(statistics["histogram"]["counts"]) < 0
    assert 0 <= statistics["first_order"]["entropy"] <= 3
    assert 0 <= statistics["glcm"]["haralick"]["joint_maximum"] <= 1
    result.save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json", network.study).answer == result.answer
    page = result_report(result.document, network.study)
    assert "Noise in the additive statistics" in page
    assert 'height="-' not in page


def test_what_all_counts_below_zero_say_is_undefined() -> None:
    study, _ = noisy_asking()
    found = derived([-5] * slots(study), 10, study)
    assert found["first_order"]["entropy"] is None
    assert found["first_order"]["mode_bin"] is None
    assert found["first_order"]["root_mean_square"] is None
    assert set(found["histogram"]["quantiles"].values()) == {None}
    assert set(found["glcm"]["haralick"].values()) == {None}


def test_texture_of_a_noisy_matrix_is_that_of_the_matrix_and_its_transpose() -> None:
    study = asking(noisy(), {"statistics": {"glcm": {"levels": 2, "range": (-1.0, 1.0)}}})
    rows = [[9, -3], [5, -4]]
    assert derived([9, -3, 5, -4], 10, study)["glcm"] == {
        "levels": 2,
        "counts": rows,
        "haralick": haralick([[18, 2], [2, 0]]),
    }


def test_statistics_before_noise_are_held_against_their_bounds() -> None:
    network = NoisyAsking()
    study, totals = network.study, network.totals["a"]
    party = until(network, "a", "computing")
    start = slots(study) - 9 - 6  # of the histogram, before the nine cells of texture
    for place, value in ((0, 25 * 4 * study.unit), (start, 10**5), (-1, 10**6)):
        wrong = list(totals["lesion"].statistics)
        wrong[place] = value
        with pytest.raises(BoundError, match="none that its voxels here can have"):
            party.supply(LocalTotals({"lesion": replace(totals["lesion"], statistics=tuple(wrong))}))
    wrong = [
        *totals["lesion"].statistics[:start],
        *[totals["lesion"].voxels] * 2,
        *totals["lesion"].statistics[start + 2 :],
    ]
    with pytest.raises(BoundError, match="histogram is none"):  # in two bins more than there are
        party.supply(LocalTotals({"lesion": replace(totals["lesion"], statistics=tuple(wrong))}))


def test_without_noise_the_same_rings_give_the_exact_answer() -> None:
    network = Noisy(noisy(), quiet)
    network.finish()
    together = sum((MINE[name] for name in "abc"), LocalTotals())
    for name in ("lesion", "liver"):
        found = network.researcher.answer[name]
        assert (found.voxels, found.sum) == (
            together[name].voxels,
            Fraction(together[name].sum, network.study.denominator),
        )
        assert found.mean == mean_of(found.voxels, together[name].sum, network.study)


def test_a_study_without_the_table_draws_no_noise() -> None:
    network = Noisy(a_study())
    network.finish()
    assert network.drawn == {}
    assert not isinstance(network.researcher.plan.voxels(bytes(16)), NoisySum)


def test_the_master_adds_no_noise_and_every_session_has_its_own() -> None:
    network = Noisy(noisy())
    until(network, "a", "ready")
    network.start_over()
    network.finish()
    assert network.researcher.done
    first, again = network.drawn["a"][0], network.drawn["a"][1]
    assert first != again
    assert len(first) == len(again) == 2 * len(network.study.classes)
    # What was released has the noise of the second session, not of the first.
    shares = sum(network.drawn[name][-3][0] for name in "abc")
    true = sum(MINE[name]["lesion"].voxels for name in "abc")
    assert network.researcher.view.learned["n", "lesion"] == true + shares


@pytest.mark.parametrize(
    ("which", "slot", "share", "said"),
    [
        (0, 0, -(10**4), "fewer than 10 voxels"),  # n below 0
        (1, 0, 10**12, TOO_NOISY),  # the mean beyond what values can be
        (2, 0, -(10**30), TOO_NOISY),  # a variance below 0
    ],
)
def test_a_class_that_noise_leaves_nothing_of_is_withheld(which: int, slot: int, share: int, said: str) -> None:
    def made_up(name: str, number: int, shares: list[int]) -> list[int]:
        return [share if (number, place) == (which, slot) else 0 for place, _ in enumerate(shares)]

    network = Noisy(noisy(), made_up)
    network.finish()
    assert network.errors == []
    assert said in network.researcher.answer["lesion"]
    assert network.researcher.answer["liver"].voxels > 0


def test_patients_are_noisy_when_they_are_held_against_their_least() -> None:
    def fewer(name: str, number: int, shares: list[int]) -> list[int]:
        return [-1 if (number, place) == (0, 3) else 0 for place, _ in enumerate(shares)]

    network = Noisy(noisy(min_patients=7), fewer)
    network.finish()
    assert "fewer than 7 patients" in network.researcher.answer["lesion"]
    assert network.researcher.answer["liver"].voxels > 0


def test_no_party_refuses_its_own_noise_and_multiples_of_the_modulus_vanish() -> None:
    study = noisy()
    plan = Plan(study, bytes(32))
    whole = plan.voxels(bytes(16)).residues.modulus

    def beyond(name: str, number: int, shares: list[int]) -> list[int]:
        return [whole * (1 if name == "a" else -3) if number == 0 else 0 for _ in shares]

    network = Noisy(study, beyond)
    network.finish()
    assert network.researcher.answer["lesion"].voxels == sum(MINE[name]["lesion"].voxels for name in "abc")

    def half(name: str, number: int, shares: list[int]) -> list[int]:
        return [whole // 3 if name == "a" and number == 0 else 0 for _ in shares]

    network = Noisy(study, half)
    network.finish()
    assert "do not fit" in str(network.errors[0])
    assert all(party.error is None for party in network.parties.values())


def test_numbers_before_noise_are_held_against_their_bounds() -> None:
    study = noisy()
    party = until(Noisy(study), "a", "computing")
    for one in (
        ClassTotals(voxels=60, sum=0, total=0, squares=0, patients=2),
        ClassTotals(voxels=50, sum=51 * study.denominator, total=0, squares=0, patients=2),
        ClassTotals(voxels=50, sum=0, total=51 * study.unit, squares=0, patients=2),
    ):
        with pytest.raises(BoundError, match=r"privacy\.voxels_per_patient|range of the study's values"):
            party.supply(LocalTotals({"lesion": one}))
    agreed = Plan(study, bytes(32)).sums(bytes(16), ["lesion"])
    with pytest.raises(BoundError):
        agreed.with_noise([agreed.exact_bound + 1], bytes, lambda noises, random: [0])
    with pytest.raises(LocalProtocolError, match="given 2"):
        agreed.lift([1, 2])


def test_a_sum_that_has_no_noise_cannot_be_made() -> None:
    plan = Plan(noisy(), bytes(32))
    with pytest.raises(LocalProtocolError, match="was given 0 noises"):
        plan._sum(bytes(16), "statistics", 3, 100)
    asked = Plan(noisy_asking()[0], bytes(32)).statistics(bytes(16), ["lesion", "liver"])
    assert isinstance(asked, NoisySum)
    assert len(asked.noises) == asked.values == 2 * slots(noisy_asking()[0])
    for agreed in (plan.voxels(bytes(16)), plan.sums(bytes(16), ["liver"])):
        assert isinstance(agreed, NoisySum)
        assert len(agreed.noises) == agreed.values
    assert [noise.sensitivity for noise in plan.voxels(bytes(16)).noises] == [25, 25, 25, 1, 1, 1]


def test_how_many_images_were_left_out_is_not_told() -> None:
    network = Noisy(noisy())
    network.skipped = {"a": 3}
    network.finish()
    assert not any(what == "skipped" for what, _ in network.researcher.view.learned)


def test_a_party_takes_no_mean_that_values_cannot_have() -> None:
    tables = msgspec.to_builtins(noisy())
    study = Study.of(**tables | {"standardise": {"method": "rescale", "range": [0.0, 9.0], "fraction_bits": 16}})
    positive = {
        of: ClassTotals(30, 9 * 27 * 2**16, 30, 30, 3) if of != "rare" else ClassTotals(1, 1, 1, 1, 1)
        for of in study.classes
    }
    network = Noisy(study, quiet)
    network.totals = dict.fromkeys("abc", LocalTotals(positive))
    network.researcher._finish_sum = lambda total: network.researcher._means.update(
        dict.fromkeys(network.researcher._counts, Fraction(-1, 90))
    )
    network.finish()
    assert "none that values of the study can have" in str(network.errors[0])


# What is told.


def test_moduli_hold_numbers_and_noise() -> None:
    study = noisy(table={"epsilon": 0.001})
    plan = Plan(study, bytes(32))
    agreed = {"voxels": plan.voxels(bytes(16)), "sum": plan.sums(bytes(16), list(study.classes))}
    for name, one in agreed.items():
        bound, modulus = moduli(study)[name]
        assert modulus == one.residues.modulus
        assert bound == one.bound == one.exact_bound + max(noise.tail for noise in one.noises)
    means = dict.fromkeys(study.classes, Fraction(1, 3))
    assert plan.sdsums(bytes(16), means).residues.modulus <= moduli(study)["sdsum"][1]


def test_the_sheet_and_its_sentences_say_what_is_promised() -> None:
    study = noisy("abcde", table=GAUSSIAN | {"epsilon": 2.0, "runs": 3}, collusion=2)
    said = " ".join(disclosure(study))
    for words in (
        "differential privacy with ε = 2, δ = 1e-06",
        "7.39 times as likely",
        "those of 3 parties are enough",
        "2 members who put all they saw together",
        "at most 25 of lesion, 25 of liver, 25 of rare voxels",
        "over 12 numbers, voxels, patients, sum, sdsum of each class",
        "Noise in class rare, as standard deviations",
        "in 3 sessions of this study at most",
        "spends ε = 6, δ = 3e-06 in all",
        "tells nobody how many",
    ):
        assert words in said
    rows = next(section for section in sheet(study).sections if section.title == "Differential privacy").rows
    assert [row[:2] for row in rows] == [(name, of) for name in study.classes for of in QUANTITIES]
    assert all("ρ = " in row[4] for row in rows)
    assert "how many images that party left out" in " ".join(disclosure(a_study()))


def test_the_sheet_says_what_additive_statistics_cost() -> None:
    study, _ = noisy_asking(GAUSSIAN)
    said = " ".join(disclosure(study))
    for words in (
        "over 27 releases, voxels, patients, sum, sdsum, feature_sums, gram, powers, histogram, glcm of each class",
        "the 4 numbers of powers share theirs evenly",
        "the 6 counts of histogram have noise for the most that a patient adds to all together",
    ):
        assert words in said
    rows = next(section for section in sheet(study).sections if section.title == "Differential privacy").rows
    told = {row[1]: row for row in rows if row[0] == "liver"}
    assert list(told)[4:] == ["feature_sums (2)", "gram (3)", "powers (4)", "histogram (6)", "glcm (9)"]
    assert told["histogram (6)"][2] == "25, all 6 together"
    assert told["glcm (9)"][2] == "650, all 9 together"  # 26 neighbours of 25 voxels
    assert told["powers (4)"][2] == "25"  # intensities are at most 1
    bound, n = moduli(study)["statistics"]
    asked = Plan(study, bytes(32)).statistics(bytes(16), list(study.classes))
    assert (asked.bound, asked.residues.modulus) == (bound, n)
    wide = asking(noisy(table={"epsilon": 0.001}), ASKED)  # noise takes more bytes than numbers do
    longest = Plan(wide, bytes(32)).statistics(bytes(16), list(wide.classes)).residues
    assert Plan(wide, bytes(32)).longest >= longest.slots * longest.width
    assert "noisy n, patient count, sum, sdsum and additive statistics" in str(sheet(study))


def test_result_and_report_say_that_numbers_are_noisy(tmp_path, capsys) -> None:
    network = Noisy(noisy(), quiet)
    network.finish()
    result = Result.of(network.researcher.answer, network.study)
    table = result.document["differential_privacy"]
    assert (table["epsilon"], table["mechanism"], table["honest"]) == (100.0, "laplace", 2)
    noise = result.document["classes"]["lesion"]["noise"]
    n = result.answer["lesion"].voxels
    assert noise["voxels_interval"][0] < n < noise["voxels_interval"][1]
    assert noise["mean_interval"][0] <= float(result.answer["lesion"].mean) <= noise["mean_interval"][1]
    assert set(noise["std"]) == set(QUANTITIES)
    result.save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json", network.study).answer == result.answer
    page = result_report(result.document, network.study)
    assert "All numbers are noisy" in page
    assert f"{noise['voxels_interval'][0]:,}" in page
    print_noise(result.document)
    assert "lesion: without noise" in capsys.readouterr().out
    plain = Result.of(dict.fromkeys(a_study().classes, "few"), a_study()).document
    assert "differential_privacy" not in plain
    print_noise(plain)
    assert capsys.readouterr().out == ""


# The ledger.


def patients(count: int = 4) -> list[LocalTotals]:
    return [LocalTotals({"lesion": ClassTotals(7, 70 + i, 7, 7, 1)}) for i in range(count)]


class Hospital:
    """A party's account of a study, without a network."""

    def __init__(self, folder, study: Study) -> None:
        self.account = Account(Ledger(folder, "a"), study)
        self.account.approve(study.digest, how="test")
        self.study = study

    def run(self, session: int, *, gives: bool = True, bring: int = 4) -> None:
        """Bring totals to a session, give a share or not, and end."""
        from voxring.ring.message import Message, encode

        totals = self.account.add_up(patients(bring))
        identity = session.to_bytes(16, "big")
        self.account.admit(identity, totals)
        self.account._session, self.account._given = identity, []
        if gives:
            names = {"sender": "a", "receiver": "b", "sum": "voxels"}
            self.account.sends(encode(Message(kind="share", digest=bytes(32), session=identity, **names)))
        self.account._end("failed", "test")

    @property
    def spent(self) -> Budget:
        return spent(self.account.ledger.verified())


def test_every_session_that_gave_a_share_is_charged_in_full_and_none_else(tmp_path) -> None:
    hospital = Hospital(tmp_path, noisy(table={"epsilon": 0.3, "runs": 3}, min_patients=3))
    assert hospital.spent == Budget(Fraction(0))
    hospital.run(1)
    assert hospital.spent == Budget(Fraction(3, 10))
    hospital.run(2, gives=False)
    assert hospital.spent == Budget(Fraction(3, 10))
    hospital.run(3)
    hospital.run(4, bring=3)  # one patient less is what noise hides: no objection
    assert hospital.spent == Budget(Fraction(9, 10))
    with pytest.raises(StudyError, match=r"may run 3 times here .*shares of 3 times are given"):
        hospital.run(5)
    with pytest.raises(StudyError, match="may run 3 times"):
        hospital.account.check_budget()
    assert hospital.spent == Budget(Fraction(9, 10))


def test_a_session_that_never_ended_is_charged(tmp_path) -> None:
    hospital = Hospital(tmp_path, noisy())
    hospital.account.admit(bytes(15) + b"\1", hospital.account.add_up(patients()))
    with pytest.raises(StudyError, match="may run once here"):
        hospital.run(2)


def test_a_hospital_spends_no_more_than_its_budget_over_all_studies(tmp_path) -> None:
    one = Hospital(tmp_path, noisy(table={"epsilon": 0.5}))
    one.account.set_budget(Budget(Fraction(1), Fraction(1, 10**5)))
    one.account.set_budget(Budget(Fraction(1), Fraction(1, 10**5)))
    entries = one.account.ledger.verified()
    assert [entry.kind for entry in entries].count("budget") == 1
    assert budget_of(entries) == Budget(Fraction(1), Fraction(1, 10**5))
    one.account.check_budget()
    one.run(1)
    other = Hospital(tmp_path, noisy(table={"epsilon": 0.5, "delta": 1e-6, "mechanism": "gaussian"}))
    other.run(2)
    assert other.spent == Budget(Fraction(1), Fraction(1, 10**6))
    third = Hospital(tmp_path, noisy(table={"epsilon": 0.001}))
    with pytest.raises(StudyError, match=r"may spend ε = 1, δ = 1e-05, and has spent ε = 1, δ = 1e-06"):
        third.run(3)
    third.account.set_budget(Budget(Fraction(2), Fraction(1, 10**6)))
    third.run(3)
    leaking = Hospital(tmp_path, noisy(table={"epsilon": 0.1, "delta": 1e-9, "mechanism": "gaussian"}))
    with pytest.raises(StudyError, match="raise the budget"):  # δ is used up
        leaking.account.check_budget()


def test_a_budget_covers_no_exact_study(tmp_path) -> None:
    exact = Hospital(tmp_path, a_study())
    exact.run(1)
    exact.account.check_budget()
    assert exact_runs(exact.account.ledger.verified()) == 1
    assert '"spends"' not in exact.account.ledger.entries()[-2].content  # the entries of such studies are as ever
    exact.account.set_budget(Budget(Fraction(10)))
    with pytest.raises(StudyError, match="exact numbers, which no budget covers"):
        exact.run(2)


def test_ledger_show_says_what_is_spent(tmp_path) -> None:
    def shown() -> str:
        done = CliRunner(env={"COLUMNS": "250"}).invoke(
            command, ["ledger", "show", "--name", "a", "--state", str(tmp_path)]
        )
        assert done.exit_code == 0, done.output
        return done.output

    Hospital(tmp_path, a_study()).run(1)
    assert "spent" not in shown()
    hospital = Hospital(tmp_path, noisy(table={"epsilon": 0.25}))
    hospital.run(2)
    assert "spent: ε = 0.25\n" in shown()
    assert "beside, 1 session of studies without noise" in shown()
    hospital.account.set_budget(Budget(Fraction(3), Fraction(1, 10**5)))
    assert "spent: ε = 0.25 of ε = 3, δ = 1e-05" in shown()
    assert "epsilon=1/4" in shown()


def test_preflight_says_whether_the_budget_allows_a_run(tmp_path) -> None:
    def found(study: Study) -> list[tuple[str, str]]:
        plan = preflight.Plan(study, "a", tmp_path, None, tmp_path, "cpu", 1, None, None, True, False)
        findings = preflight._judged("budget", lambda: preflight._budget(plan))
        return [(one.state, one.words) for one in findings]

    assert found(a_study()) == []
    hospital = Hospital(tmp_path, noisy(table={"epsilon": 0.5}))
    assert found(hospital.study) == [("ok", "a run spends ε = 0.5, which the ledger allows")]
    hospital.run(1)
    ((state, words),) = found(hospital.study)
    assert state == "wrong"
    assert "may run once here" in words


# Images.


def test_patients_of_a_manifest_are_clipped_each_over_all_its_images(tmp_path) -> None:
    tables = msgspec.to_builtins(noisy())
    study = Study.of(**tables | {"classes": {"lesion": 1}, "bounds": {"intensity": 100}})
    rows = ["image,ground_truth,patient"]
    for number, patient in enumerate("ppq"):
        np.save(tmp_path / f"image{number}.npy", np.full((5, 5), 3, np.int16))
        np.save(tmp_path / f"truth{number}.npy", np.ones((5, 5), np.uint8))
        rows.append(f"image{number}.npy,truth{number}.npy,{patient}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    batch = party_batch(tmp_path / "manifest.csv", study)
    assert batch.account() == "3 images used; 1 of 2 patients count as fewer voxels than they have"
    assert [one["lesion"].voxels for one in batch.patients] == [25, 25]
    assert batch.totals["lesion"] == ClassTotals(
        50, 50 * 3 * study.denominator, 150 * study.unit, 450 * study.unit**2, 2
    )
    whole = party_batch(tmp_path / "manifest.csv", Study.of(name="t", classes={"lesion": 1}, window={"size": 3}))
    assert (whole.clipped, whole.totals["lesion"].voxels) == (0, 75)
