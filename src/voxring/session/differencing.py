"""Which run a party must not join, because with an earlier one it would tell the numbers of a few.

Two results tell their difference. If the same hospitals bring the same images but for one patient's, the difference is
that patient's; if one hospital more takes part, it is that hospital's. So a party holds what it is about to bring
(`Brought`) against what it brought to each earlier run in which it gave away a share. R learns n of *every* class of a
study, released or not, in the first sum of a run; so all classes that a party brought count, however the run ended.

The rule
--------
What a patient gives to a class are four integers, n, Σ of local means, Σx and Σx² over all of the patient's images; the
results are sums of these. Where the manifest has no ``patient`` column, every image is a patient. For each patient that
has the class, `Brought` holds a hash of n, and one of all four, keyed with the party's salt. A multiset of hashes
*differs by d patients* from another if d is the larger of the numbers of hashes that only the one and only the other
has: a patient whose images or ground truth changed stands on both sides and is one.

Of additive statistics there is a hash more for each patient and *block* (`voxring.statistics.layout`). Blocks of two
studies are the same if all is equal that their numbers depend on: for a histogram the standardisation and the bins.

A class of the earlier run and one of the new run are *comparable* if both

1. have the same label in the ground truth; or one has a number, the other a segment's name, which may be the same;
2. are asked about the same images, which is so when at least half of the patients of the smaller have their n in the
   other too; or, for equal labels, are asked the same question, which is so when window and standardise are equal, or
   when both have the same block of additive statistics.

The new run is refused if fewer hospitals than ``min_parties`` took part in only one of the two runs, and for any two
comparable classes

- *patients*: n differs by at least one and fewer than ``min_patients`` patients; or all four do, which tells something
  where window and standardise are the same; or a block does that both have; or
- *hospitals*: at least one hospital took part in only one of the runs, and the classes are asked about the same
  images, or the question is the same and this party has neither class.

``min_parties`` and ``min_patients`` are the larger ones of the two studies. An exact repeat, and another question about
the same images to the same hospitals, differ in nothing and are allowed. So is a run in which many differ: the same
question to the same hospitals a year later, with images of at least ``min_patients`` others.

Where parties agree on landmarks (`voxring.landmarks`), what a party brings to their sum counts as a run of its own with
one class that all images have. In place of n stand how many images a patient has, their voxels, and the sum of what
they store, which other percentiles leave as they are; in place of the four integers the landmarks. The question is of
standardise alone.

Why hashes of numbers, and not of files: they are at hand, where reading and hashing every file again would double the
time of a batch; they are of exactly what results are made of; and a file that was moved, renamed, compressed or
converted is still the same patient's.

``min_voxels`` is not looked at: hashes do not tell how many voxels differ. What a party cannot see so: that the images
of *other* hospitals changed (each looks after its own); combinations of three and more runs; runs that its ledger does
not hold, such as those with another state folder; and under another question, that an image changed while n did not. A
version of voxring that computed other numbers would make every patient another.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec

from voxring.landmarks import SCALE
from voxring.statistics import EVALUATION, layout, padded, unpack
from voxring.study import Study
from voxring.totals import LocalTotals


class BroughtClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a party has of one class: its label, and hashes for each patient that has it, sorted.

    ``blocks`` are those of additive statistics, by what their numbers depend on.
    """

    label: int | str
    counts: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    blocks: dict[str, tuple[str, ...]] = {}


class Brought(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a party brings to a run, for its own eyes, and with whom; ``question`` is of window and standardise."""

    study: str
    digest: str
    participants: tuple[str, ...]
    min_parties: int
    min_patients: int
    question: str
    classes: dict[str, BroughtClass]

    @classmethod
    def of(cls, study: Study, question: str, classes: dict[str, BroughtClass]) -> Brought:
        """Describe classes that a party brings to a study."""
        least = study.privacy
        return cls(study.name, study.digest, study.parties, least.min_parties, least.min_patients, question, classes)


def brought(study: Study, patients: Iterable[LocalTotals], token: Callable[..., str]) -> Brought:
    """Describe what a party brings.

    Parameters
    ----------
    study : Study
        With its parties.
    patients : iterable of LocalTotals
        One for each patient.
    token : callable
        Makes a keyed hash of its arguments, as `Ledger.token`.

    Examples
    --------
    >>> from voxring.totals import ClassTotals
    >>> study = Study.of(name="liver", classes={"lesion": 1}, party=[{"name": n} for n in "abc"])
    >>> one = LocalTotals({"lesion": ClassTotals(voxels=2, sum=10, total=9, squares=50, patients=1)})
    >>> brought(study, [one], lambda *parts: str(hash(parts))).classes["lesion"].label
    1
    """
    parts = tuple(patients)

    questions = _block_questions(study)

    def of_class(name: str, label: int | str) -> BroughtClass:
        having = [one[name] for one in parts if one[name].voxels]
        additive = [unpack(padded(one.statistics, one.voxels, study), study) for one in having]
        return BroughtClass(
            label,
            tuple(sorted(token("n", one.voxels) for one in having)),
            tuple(sorted(token("numbers", one.voxels, one.sum, one.total, one.squares) for one in having)),
            {
                question: tuple(sorted(token(block, list(map(str, mine[block]))) for mine in additive))
                for block, question in questions.items()
            },
        )

    window = msgspec.structs.replace(study.window, axes=msgspec.UNSET)  # which changes no number
    question = _hash(window, study.standardise)
    return Brought.of(study, question, {name: of_class(name, label) for name, label in study.classes.items()})


def brought_landmarks(study: Study, patients: Iterable[LocalTotals], token: Callable[..., str]) -> Brought:
    """Describe the landmarks that a party brings; parameters as of `brought`."""
    having = [one[SCALE] for one in patients]
    images = BroughtClass(
        SCALE,
        tuple(sorted(token("image", one.sum, one.voxels, one.total) for one in having)),
        tuple(sorted(token("landmarks", one.sum, list(map(str, one.statistics))) for one in having)),
    )
    return Brought.of(study, _hash(SCALE, study.standardise), {SCALE: images})


def _block_questions(study: Study) -> dict[str, str]:
    """For each block of a study a hash of all that its numbers depend on but the images."""
    asked = study.statistics
    features: list[object] = [study.feature, study.window.border, study.window.fill, study.standardise]
    model = study.evaluate
    evaluated: list[object] = [] if model is None else [model.digest, model.bins, study.classes]
    of: dict[str, list[object]] = {
        "feature_sums": features,
        "gram": features,
        "powers": [asked.moments, study.standardise],
        "histogram": [asked.histogram, study.standardise],
        "glcm": [asked.glcm, study.standardise],
        **dict.fromkeys(EVALUATION, evaluated),
    }
    return {block.name: _hash(block.name, *of[block.name]) for block in layout(study)}


def _hash(*of: object) -> str:
    return hashlib.sha256(msgspec.json.encode(of)).hexdigest()


def objection(earlier: Brought, new: Brought) -> str | None:
    """Return why a party that brought ``earlier`` must not bring ``new``, or None.

    Examples
    --------
    >>> def run(*patients, participants="abc"):
    ...     lesion = BroughtClass(1, patients, patients)
    ...     return Brought("liver", "00", tuple(participants), 3, 2, "mean", {"lesion": lesion})
    >>> objection(run("p", "q"), run("p", "q"))
    >>> objection(run("p", "q"), run("p", "q", "r"))
    "class 'lesion': images of fewer than privacy.min_patients = 2 patients here are in only one of both"
    >>> objection(run("p", "q"), run("p", "q", participants="abcd"))
    "class 'lesion': fewer than privacy.min_parties = 3 hospitals take part in only one of both: d"
    """
    min_parties = max(earlier.min_parties, new.min_parties)
    min_patients = max(earlier.min_patients, new.min_patients)
    hospitals = sorted(set(earlier.participants) ^ set(new.participants))
    if len(hospitals) >= min_parties:
        return None
    same_numbers = earlier.question == new.question
    for old in earlier.classes.values():
        for name, one in new.classes.items():
            same_images = _same_images(old.counts, one.counts)
            same_blocks = old.blocks.keys() & one.blocks.keys()
            same_question = same_numbers or bool(same_blocks)
            if not (old.label == one.label and same_question) and not (_may_be_one(old, one) and same_images):
                continue
            differ = [_difference(old.counts, one.counts)]
            if same_numbers:
                differ.append(_difference(old.numbers, one.numbers))
            differ += [_difference(old.blocks[block], one.blocks[block]) for block in same_blocks]
            if any(0 < patients < min_patients for patients in differ):
                return (
                    f"class {name!r}: images of fewer than privacy.min_patients = {min_patients} patients here are "
                    "in only one of both"
                )
            if hospitals and (same_images or not (old.counts or one.counts)):
                return (
                    f"class {name!r}: fewer than privacy.min_parties = {min_parties} hospitals take part in only one "
                    f"of both: {', '.join(hospitals)}"
                )
    return None


def _may_be_one(old: BroughtClass, new: BroughtClass) -> bool:
    return old.label == new.label or isinstance(old.label, str) != isinstance(new.label, str)


def _same_images(one: Sequence[str], two: Sequence[str]) -> bool:
    both = Counter(one) & Counter(two)
    return 0 < min(len(one), len(two)) <= 2 * both.total()


def _difference(one: Sequence[str], two: Sequence[str]) -> int:
    left, right = Counter(one), Counter(two)
    return max((left - right).total(), (right - left).total())
