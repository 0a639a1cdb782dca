"""The standard scale that the parties of a study agree on (``standardise.landmarks = "agree"``), exactly.

Nyúl and Udupa, *On standardizing the MR image intensity scale* (1999): the landmarks of an image are percentiles of
its foreground, and the standard scale is their mean over all images, once each image is stretched so that the first
landmark is 0 and the last 1. Then each image is mapped piecewise linearly from its own landmarks to the scale.

Of each image, landmark v_j becomes the integer nearest to 2^p · (v_j − v_1) / (v_k − v_1), half to even, whatever its
slope and intercept are. Integers are summed over images, patients, parties; the scale is the sum over 2^p · images. So
it does not depend on who has which image. An image that stands in two rows of a manifest counts twice.

A party keeps the landmarks of its images as `LocalTotals` of one class, `SCALE`, since they add up, and go into a
journal, as totals do: ``sum`` is the number of images, ``statistics`` are the inner landmarks. ``voxels`` and
``total``, all voxels of an image and Σ of its stored integers, tell one patient's images from another's and never leave
the party.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise

from voxring.errors import BoundError, StudyError
from voxring.study import Study
from voxring.totals import ClassTotals, LocalTotals, count_bound

SCALE = "standard scale"


def landmark_totals(voxels: int, total: int, inner: Sequence[int]) -> LocalTotals:
    """Return what a party keeps of one image."""
    return LocalTotals({SCALE: ClassTotals(voxels, 1, total, patients=1, statistics=tuple(inner))})


def inner_landmarks(study: Study) -> int:
    """How many landmarks are agreed on: all but the first and the last."""
    return len(study.standardise.percentiles or ()) - 2


def landmark_bound(study: Study) -> int:
    """Largest sum of one landmark over the images of one party, which has no more images than voxels."""
    return count_bound(study) * study.unit


def too_few(patients: int, study: Study) -> str | None:
    """Return why no landmark may be opened, or None."""
    least = study.privacy.min_patients
    if patients >= max(least, 1):
        return None
    return f"fewer than {max(least, 1)} patients have images in all (privacy.min_patients): no standard scale is opened"


def scale_of(images: int, sums: Sequence[int], study: Study) -> tuple[Fraction, ...]:
    """Return the standard scale, from 0 to 1, from the number of images and the sums of their inner landmarks.

    Raises
    ------
    StudyError
        Two landmarks are one number.
    """
    scale = (Fraction(0), *(Fraction(number, images * study.unit) for number in sums), Fraction(1))
    if any(low >= high for low, high in pairwise(scale)):
        raise StudyError(
            "the landmarks of the standard scale do not rise: use more fraction_bits, or percentiles further apart"
        )
    return scale


def standard_scale(totals: LocalTotals, study: Study) -> tuple[Fraction, ...]:
    """Return the standard scale of everybody's landmarks added up, in the open; `Study.with_landmarks` takes it.

    Raises
    ------
    StudyError
        There are too few patients, or two landmarks are one number.

    Examples
    --------
    >>> study = Study.of(
    ...     name="mri",
    ...     classes={"lesion": 1},
    ...     standardise={"method": "nyul", "percentiles": [1, 50, 99], "landmarks": "agree", "fraction_bits": 8},
    ... )
    >>> scale = standard_scale(landmark_totals(9, 40, [64]) + landmark_totals(9, 50, [128]), study)
    >>> scale
    (Fraction(0, 1), Fraction(3, 8), Fraction(1, 1))
    >>> study.with_landmarks(scale).standardise.landmarks
    ('0/1', '3/8', '1/1')
    """
    mine = totals[SCALE]
    why = too_few(mine.patients, study)
    if why is not None:
        raise StudyError(why)
    return scale_of(mine.sum, mine.statistics, study)


def landmarks_learned(learned: Mapping[tuple[str, str], object]) -> LocalTotals | None:
    """Return the landmarks of all parties together as the researcher's view has them, or None where it has none."""
    images, patients, sums = (learned.get((what, SCALE)) for what in ("images", "patients", "landmarks"))
    if not (isinstance(images, int) and isinstance(patients, int) and isinstance(sums, tuple)):
        return None
    return LocalTotals({SCALE: ClassTotals(sum=images, patients=patients, statistics=sums)})


def scale_document(landmarks: LocalTotals, study: Study) -> dict[str, object]:
    """Return what the result file says of the standard scale, as JSON types; from everybody's landmarks added up."""
    scale = standard_scale(landmarks, study)
    return {
        "images": landmarks[SCALE].sum,
        "patients": landmarks[SCALE].patients,
        "percentiles": list(study.standardise.percentiles or ()),
        "landmarks": [[str(one.numerator), str(one.denominator)] for one in scale],
        "landmarks_float": [float(one) for one in scale],
    }


def check_landmarks(totals: LocalTotals, study: Study) -> None:
    """Refuse landmarks that leave the study's public bounds, before anything is sent.

    Raises
    ------
    BoundError
        Names the bound, not the value.
    """
    mine, most = totals[SCALE], count_bound(study)
    if max(mine.sum, mine.patients) > most:
        raise BoundError(
            f"there are more images here than bounds.voxels_per_party = {most}: nothing was sent; ask the researcher "
            "for a study with a larger bound"
        )
    if (mine.sum, mine.patients) != (0, 0) and fault(mine.sum, mine.patients, mine.statistics, study):
        raise BoundError("the landmarks here are none that images can have; nothing was sent")


def fault(images: int, patients: int, sums: Sequence[int], study: Study) -> bool:
    """Whether no images have these landmarks: each lies between 0 and 2^p, and they do not fall."""
    stretched = (0, *sums, images * study.unit)
    return (
        len(sums) != inner_landmarks(study)
        or not 1 <= patients <= images
        or any(low > high for low, high in pairwise(stretched))
    )
