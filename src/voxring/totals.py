"""What a party keeps of its images, and what the totals of all parties say: the algebra of Algorithm 1.

A party keeps, for each class, n, the sum of local means, Σx and Σx². From these it answers the second pass
(lines 19-25) without reading an image again: sdsum = Σx² − 2μΣx + nμ². Everything is an integer over a denominator
that all parties know, until the last square root.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType

from voxring.errors import BoundError, StudyError
from voxring.evaluate import document as evaluation_document
from voxring.fixedpoint import square_root
from voxring.privacy import value_range, voxels_of_patient
from voxring.privacy.intervals import noise_of_class, noise_of_study
from voxring.statistics import derived, evaluation, fault, layout, padded
from voxring.study import Study


@dataclass(frozen=True, slots=True)
class ClassTotals:
    """Integers of one class: voxel count n, Σ of local means over ``study.denominator``, Σx, Σx², patients seen.

    ``statistics`` are the additive statistics that the study asks for, in the order of `voxring.statistics.layout`, or
    none where no voxel was seen.
    """

    voxels: int = 0
    sum: int = 0
    total: int = 0
    squares: int = 0
    patients: int = 0
    statistics: tuple[int, ...] = ()

    def __add__(self, other: ClassTotals) -> ClassTotals:
        return ClassTotals(
            self.voxels + other.voxels,
            self.sum + other.sum,
            self.total + other.total,
            self.squares + other.squares,
            self.patients + other.patients,
            _added(self.statistics, other.statistics),
        )

    def sdsum(self, mean: Fraction, unit: int) -> int:
        """Σ (x/unit − μ)² (line 22) as an integer over ``(mean.denominator · unit)²``."""
        numerator, denominator = mean.numerator * unit, mean.denominator
        return (
            self.squares * denominator**2
            - 2 * self.total * numerator * denominator
            + self.voxels * numerator * numerator
        )


def _added(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    if not (one and other):
        return one or other
    return tuple(mine + theirs for mine, theirs in zip(one, other, strict=True))


@dataclass(frozen=True, slots=True)
class LocalTotals:
    """A party's integers for each class of the study. Adds up over images and workers, in any order.

    Examples
    --------
    >>> one = LocalTotals({"lesion": ClassTotals(voxels=2, sum=10)})
    >>> (one + one).classes["lesion"].voxels
    4
    """

    classes: Mapping[str, ClassTotals] = field(default_factory=dict)

    def __add__(self, other: LocalTotals) -> LocalTotals:
        names = dict.fromkeys([*self.classes, *other.classes])
        none = ClassTotals()
        return LocalTotals({n: self.classes.get(n, none) + other.classes.get(n, none) for n in names})

    def __getitem__(self, name: str) -> ClassTotals:
        return self.classes.get(name, ClassTotals())


@dataclass(frozen=True, slots=True)
class Statistics:
    """The exact answer for one class: n, sum, μ = sum / n, sdsum, σ² = sdsum / (n − 1); and what else was asked for.

    ``additive`` are the integers of `voxring.statistics.layout`.
    """

    voxels: int
    sum: Fraction
    sdsum: Fraction
    additive: tuple[int, ...] = ()

    @property
    def mean(self) -> Fraction:
        """The global mean μ (line 16)."""
        return self.sum / self.voxels

    @property
    def variance(self) -> Fraction:
        """σ², as in line 27 before the square root."""
        return self.sdsum / (self.voxels - 1)

    @property
    def std(self) -> float:
        """σ (line 27), the one number that is rounded, to the nearest float."""
        return square_root(self.variance)


def clipped(patient: LocalTotals, study: Study) -> LocalTotals:
    """Have one patient count as no more voxels of a class than ``privacy.voxels_per_patient``, if the study says it.

    Of a class with more voxels n than m, n becomes m and every sum is multiplied by m / n and rounded towards 0: each
    of the voxels weighs a little less.

    Parameters
    ----------
    patient : LocalTotals
        Over all images of one patient at one party.

    Examples
    --------
    >>> study = Study.of(
    ...     name="t", classes={"a": 1}, privacy={"voxels_per_patient": 10}, differential_privacy={"epsilon": 1.0}
    ... )
    >>> one = LocalTotals({"a": ClassTotals(voxels=30, sum=-100, total=99, squares=400, patients=1)})
    >>> clipped(one, study)["a"]
    ClassTotals(voxels=10, sum=-33, total=33, squares=133, patients=1, statistics=())
    """
    if study.differential_privacy is None:
        return patient
    return LocalTotals({name: _clipped(of, voxels_of_patient(study, name)) for name, of in patient.classes.items()})


def _clipped(one: ClassTotals, most: int) -> ClassTotals:
    if one.voxels <= most:
        return one

    def less(value: int) -> int:
        size = abs(value) * most // one.voxels
        return -size if value < 0 else size

    return ClassTotals(
        most,
        less(one.sum),
        less(one.total),
        less(one.squares),
        one.patients,
        tuple(map(less, one.statistics)),
    )


def mean_of(voxels: int, total: int, study: Study) -> Fraction:
    """Global mean (line 16) from n and the sum over ``study.denominator``."""
    return Fraction(total, study.denominator * voxels)


def withheld(voxels: int, patients: int, study: Study) -> str | None:
    """Return why a class is not released, or None."""
    privacy = study.privacy
    if voxels < privacy.min_voxels:
        return f"fewer than {privacy.min_voxels} voxels in all (privacy.min_voxels)"
    if patients < privacy.min_patients:
        return f"fewer than {privacy.min_patients} patients in all (privacy.min_patients)"
    return None


def pooled(totals: LocalTotals, study: Study) -> dict[str, Statistics | str]:
    """The answer in the open, from everybody's totals added up; a class that is withheld has its reason instead.

    Raises
    ------
    StudyError
        What is given are no totals, or they were made for a study with other statistics.
    """
    if not isinstance(totals, LocalTotals):
        raise StudyError(
            f"expected the totals of all parties added up, got {type(totals).__name__}: add them with + or "
            "sum(parts, LocalTotals())"
        )
    answer: dict[str, Statistics | str] = {}
    for name in study.classes:
        mine = totals[name]
        reason = withheld(mine.voxels, mine.patients, study)
        if reason is not None:
            answer[name] = reason
            continue
        mean = mean_of(mine.voxels, mine.sum, study)
        sdsum = Fraction(mine.sdsum(mean, study.unit), (mean.denominator * study.unit) ** 2)
        additive = padded(mine.statistics, mine.voxels, study)
        answer[name] = Statistics(mine.voxels, Fraction(mine.sum, study.denominator), sdsum, additive)
    return answer


def result_document(
    answer: Mapping[str, Statistics | str], study: Study, skipped: Mapping[str, int] = MappingProxyType({})
) -> dict[str, object]:
    """The result file as JSON types: exact numbers are pairs of decimal strings in lowest terms.

    ``skipped`` are the parties that left images out, and how many.
    """

    def pair(value: Fraction) -> list[str]:
        return [str(value.numerator), str(value.denominator)]

    def entry(name: str, one: Statistics | str) -> dict[str, object]:
        if isinstance(one, str):
            return {"withheld": one}
        found: dict[str, object] = {
            "voxels": one.voxels,
            "sum": pair(one.sum),
            "mean": pair(one.mean),
            "sdsum": pair(one.sdsum),
            "variance": pair(one.variance),
            "mean_float": float(one.mean),
            "std_float": one.std,
        }
        if noisy:
            found |= {"noise": noise_of_class(study, name, one.voxels, one.sum)}
        return found | {"statistics": derived(one.additive, one.voxels, study)} if asked else found

    asked, noisy = bool(layout(study)), study.differential_privacy is not None
    features = {"features": [feature.label for feature in study.feature]} if study.feature else {}
    evaluated = {}
    if study.evaluate is not None:
        released = {name: one.additive for name, one in answer.items() if isinstance(one, Statistics)}
        made = evaluation_document(evaluation(released, study))
        made["classes"] |= {name: entry(name, one) for name, one in answer.items() if isinstance(one, str)}
        evaluated = {"evaluation": {"model": study.evaluate.digest, **made}}
    return {
        "study": study.name,
        "digest": study.digest,
        "parties": len(study.party),
        "skipped": dict(skipped),
        **features,
        **({"differential_privacy": noise_of_study(study)} if noisy else {}),
        "classes": {name: entry(name, one) for name, one in answer.items()},
        **evaluated,
    }


def count_bound(study: Study) -> int:
    """Largest voxel count, or number of patients, of one party."""
    return study.bounds.voxels_per_party


def sum_bound(study: Study) -> int:
    """Largest size of one party's sum, over ``study.denominator``."""
    return study.bounds.voxels_per_party * study.intensity_bound * study.window.denominator


def sdsum_bound(study: Study, mean: Fraction) -> int:
    """Largest sdsum of one party, over ``(mean.denominator · study.unit)²``: no |x − μ| exceeds twice the bound."""
    return study.bounds.voxels_per_party * (2 * study.intensity_bound * mean.denominator) ** 2


def check_bounds(totals: LocalTotals, study: Study) -> None:
    """Refuse totals that leave the study's public bounds, before anything is sent.

    Raises
    ------
    BoundError
        Names the class and the bound, not the value.
    """
    for name, mine in totals.classes.items():
        most, largest = count_bound(study), study.intensity_bound
        if study.differential_privacy is not None:
            most = min(most, mine.patients * voxels_of_patient(study, name))
            if mine.voxels > most or abs(mine.sum) > most * largest * study.window.denominator:
                raise BoundError(
                    f"class {name!r} has more here than its patients may count as under privacy.voxels_per_patient: "
                    "nothing was sent; add up the totals of patients after `voxring.totals.clipped`"
                )
            low, high = value_range(study)
            if not low * mine.voxels <= mine.total <= high * mine.voxels:
                raise BoundError(f"class {name!r}: Σx leaves the range of the study's values; nothing was sent")
        if mine.voxels > count_bound(study) or mine.patients > count_bound(study):
            raise BoundError(
                f"class {name!r} has more voxels here than bounds.voxels_per_party = {count_bound(study)}: "
                "nothing was sent; ask the researcher for a study with a larger bound"
            )
        if abs(mine.sum) > sum_bound(study) or abs(mine.total) > most * largest or mine.squares > most * largest**2:
            raise BoundError(
                f"class {name!r}: a sum leaves what voxels_per_party and intensity in bounds allow; nothing was sent"
            )
        block = fault(padded(mine.statistics, mine.voxels, study), mine.voxels, study)
        if block is not None:
            raise BoundError(f"class {name!r}: {block} is none that its voxels here can have; nothing was sent")
