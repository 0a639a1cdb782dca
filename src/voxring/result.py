"""The result of a study: what a researcher reads, saves, loads again, and trains a classifier on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from voxring.errors import ModelError, StudyError
from voxring.landmarks import scale_document
from voxring.learn.logistic import Fitted, fitted_document
from voxring.statistics import derived, evaluation, fault, integers_of
from voxring.study import Study, expect_study
from voxring.tables import html_table
from voxring.totals import LocalTotals, Statistics, result_document

if TYPE_CHECKING:
    from voxring.evaluate import Counts
    from voxring.learn import Model


@dataclass(frozen=True)
class Result:
    """What came of a study.

    Attributes
    ----------
    study : Study
    answer : mapping of class name to Statistics or str
        Exact numbers of each class, or why it is withheld.
    document : mapping
        What stands in the result file, as JSON types.

    Examples
    --------
    >>> import numpy as np
    >>> from voxring import Study, local_totals, pooled
    >>> study = Study.of(name="t", classes={"fat": 1, "air": 9}, window={"size": 3}, standardise={"method": "none"})
    >>> image = np.arange(27, dtype=np.int16).reshape(3, 3, 3)
    >>> totals = local_totals(image, np.ones((3, 3, 3), np.uint8), study)
    >>> result = Result.of(pooled(totals, study), study)
    >>> result
    Result('t', fat: 27 voxels, air: withheld)
    >>> result.answer["fat"].mean
    Fraction(13, 1)
    """

    study: Study
    answer: Mapping[str, Statistics | str]
    document: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        answer: Mapping[str, Statistics | str],
        study: Study,
        skipped: Mapping[str, int] = MappingProxyType({}),
        landmarks: LocalTotals | None = None,
        fitted: Fitted | None = None,
    ) -> Result:
        """Take R's answer; ``skipped`` are the parties that left images out, and how many.

        ``landmarks`` are those of all images together, where the parties agreed on them (`voxring.landmarks`);
        ``fitted`` is what the steps of a logistic regression came to, where the study asks for one.
        """
        return Result(study, answer, document_of(answer, study, skipped, landmarks, fitted))

    @classmethod
    def load(cls, path: str | Path, study: Study) -> Result:
        """Read a result file.

        Parameters
        ----------
        path : path
        study : Study
            The one that it was made with. Where it names no parties, its name alone is compared, and not its digest.

        Raises
        ------
        ModelError
            It is missing, none, of another study, or holds numbers that no voxels can have.
        """
        expect_study(study)
        document = read_result(Path(path))
        check_same(document, study, str(path), "the study")
        classes = document["classes"]
        if not isinstance(classes, dict) or set(classes) != set(study.classes):
            raise ModelError(f"{path}: its classes are not those of the study: give the study that it was made with")
        try:
            answer = {name: _read(classes[name], study) for name in study.classes}
        except (KeyError, TypeError, ValueError, ZeroDivisionError, ModelError) as error:
            raise ModelError(f"{path}: a class lacks numbers of the study, or they are malformed: {error}") from None
        if study.agrees:
            _read_scale(document, study, path)
        noisy = study.differential_privacy is not None  # then statistics may be any numbers
        for name, one in answer.items():
            if isinstance(one, str):
                continue
            if one.voxels < 2 or one.sdsum < 0 or (not noisy and fault(one.additive, one.voxels, study)):
                raise ModelError(f"{path}: class {name!r} has numbers that no voxels can have: the file was changed")
        return Result(study, answer, document)

    def save(self, path: str | Path) -> None:
        """Write the result file, whole or not at all.

        Raises
        ------
        StudyError
            The folder is missing or cannot be written.
        """
        write_whole(Path(path), msgspec.json.format(msgspec.json.encode(self.document), indent=2) + b"\n")

    @property
    def agreed(self) -> Study:
        """The study by which intensities were standardised: with the landmarks that the parties agreed on, if they did.

        Raises
        ------
        ModelError
            They agreed on landmarks and the document has none, or others than the study can have.
        """
        return agreed_study(self.document, self.study)

    @property
    def statistics(self) -> dict[str, dict[str, Any]]:
        """Of each class that is not withheld, what else the study asks for, as it stands in the document.

        Feature sums, means and covariance, moments, histogram, co-occurrence and what follows (docs/statistics.md).
        """
        return {
            name: derived(one.additive, one.voxels, self.study)
            for name, one in self.answer.items()
            if not isinstance(one, str)
        }

    @property
    def evaluation(self) -> Counts | None:
        """How the model of a study with ``[evaluate]`` met the ground truth of the released classes, or None."""
        if self.study.evaluate is None:
            return None
        return evaluation(
            {name: one.additive for name, one in self.answer.items() if not isinstance(one, str)}, self.study
        )

    def train(self, classifier: str = "lda", **settings: Any) -> Model:
        """Make a classifier from the sums; no voxel is needed (docs/classifiers.md).

        Parameters
        ----------
        classifier : {"lda", "qda", "gnb", "ridge", "logistic"}
            The last of a study with ``[logistic]``, which has fitted it.
        **settings
            Of the classifier: ``priors``, ``shrinkage``, ``smoothing`` or ``alpha``.

        Raises
        ------
        ModelError
            The study does not ask for the sums that it takes, or nothing can be made from them.
        """
        from voxring.learn import Model, Moments

        if classifier == "logistic":
            settings["weights"] = weights_of(self.document)
        return Model.of(self.agreed, Moments.of_result(self.document, self.study), classifier, **settings)

    def __repr__(self) -> str:
        classes = (f"{n}: {'withheld' if isinstance(one, str) else f'{one.voxels} voxels'}" for n, one in self._rows)
        return f"Result({self.study.name!r}, {', '.join(classes)})"

    @property
    def _rows(self) -> list[tuple[str, Statistics | str]]:
        """Classes in the study's order."""
        return [(name, self.answer[name]) for name in self.study.classes]

    def _repr_html_(self) -> str:
        few = {name: few_of(one) for name, one in self.statistics.items()}
        more = list(dict.fromkeys(title for one in few.values() for title in one))
        body: list[list[object]] = []
        for name, one in self._rows:
            if isinstance(one, str):
                body.append([name, "withheld", one, *[""] * (1 + len(more))])
                continue
            shown = ["" if few[name][title] is None else f"{few[name][title]:.6g}" for title in more]
            body.append([name, f"{one.voxels:,}", f"{float(one.mean):.6f}", f"{one.std:.6f}", *shown])
        return html_table(f"Result of {self.study.name}", ["class", "voxels", "mean", "sigma", *more], body)


def document_of(
    answer: Mapping[str, Statistics | str],
    study: Study,
    skipped: Mapping[str, int] = MappingProxyType({}),
    landmarks: LocalTotals | None = None,
    fitted: Fitted | None = None,
) -> dict[str, object]:
    """The result file as JSON types, with the standard scale if one was agreed, and weights if some were fitted."""
    document = result_document(answer, study, skipped)
    if landmarks is not None:
        document["standard_scale"] = scale_document(landmarks, study)
    if fitted is not None:
        document["logistic"] = fitted_document(fitted, study)
    return document


def weights_of(document: Mapping[str, Any], path: str | Path = "result") -> list[list[list[str]]]:
    """Return the weights of a result's logistic regression, as pairs of decimal strings.

    Raises
    ------
    ModelError
        The study asked for none, or no weights were found.
    """
    made = document.get("logistic")
    if not isinstance(made, dict):
        raise ModelError(
            f"{path}: the study asked for no logistic regression, which needs sums of its own: write [logistic] into "
            "the study and run it, or take another classifier"
        )
    if "withheld" in made:
        raise ModelError(f"{path}: the logistic regression has no weights: {made['withheld']}")
    try:
        return [[[str(part) for part in pair] for pair in row] for row in made["weights"]]
    except (KeyError, TypeError):
        raise ModelError(f"{path}: expected weights as pairs of decimal strings: the file was changed") from None


def agreed_study(document: Mapping[str, Any], study: Study, path: str | Path = "result") -> Study:
    """Return the study by which a result's intensities were standardised; errors as of `Result.agreed`."""
    return study.with_landmarks(_read_scale(document, study, path)) if study.agrees else study


def _read_scale(document: Mapping[str, Any], study: Study, path: str | Path = "result") -> tuple[Fraction, ...]:
    from voxring.learn.moments import fraction_of

    try:
        scale = tuple(fraction_of(pair) for pair in document["standard_scale"]["landmarks"])
        study.with_landmarks(scale)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, ModelError, StudyError):
        raise ModelError(
            f"{path}: expected the standard scale that the parties agreed on, rising, one number for each percentile; "
            "it is missing or malformed: the file was changed"
        ) from None
    return scale


def few_of(found: Mapping[str, Any]) -> dict[str, float | None]:
    """A few of a class's further statistics, which are shown where not all can be."""
    first = found.get("first_order", {})
    texture = found.get("glcm", {}).get("haralick", {})
    shown = [(first, ("median", "skewness", "kurtosis", "entropy")), (texture, ("contrast", "correlation"))]
    return {title: of[title] for of, titles in shown for title in titles if title in of}


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file.

    Raises
    ------
    ModelError
        It is missing or none.
    """
    try:
        document = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: no result can be read there: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ModelError(f"{path}: expected a result file, which is JSON, got something else") from None
    if not isinstance(document, dict) or not {"study", "digest", "classes"} <= set(document):
        raise ModelError(
            f"{path}: expected a result file with study, digest and classes, got other JSON: give what --out of "
            "`voxring simulate` or `voxring research` named"
        )
    return document


def check_same(document: Mapping[str, Any], study: Study, result: str | Path, given: str | Path) -> list[str]:
    """Refuse a result of another study; return what could not be checked. ``result`` and ``given`` name the two.

    Raises
    ------
    ModelError
        The digests differ, or, where the study names no parties, the names of the studies.
    """
    if study.party and document["digest"] != study.digest:
        raise ModelError(
            f"{result}: the digest is not that of {given}: give the study file that the result was made with, unchanged"
        )
    if document["study"] != study.name:
        raise ModelError(f"{result}: it is of the study {document['study']!r}, and {given} is {study.name!r}")
    if study.party or document["digest"] == study.digest:
        return []
    return [
        f"{given} names no parties, so its digest cannot be compared with the result's: see that it is the same file"
    ]


def write_whole(out: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file, whole or not at all; a private one is for its owner alone.

    Raises
    ------
    StudyError
        The folder is missing or cannot be written.
    """
    partial = out.with_name(f".{out.name}.partial")
    try:
        with open(partial, "wb", opener=_owners_alone if private else None) as file:
            file.write(content)
        partial.replace(out)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise StudyError(
            f"{out}: cannot be written: {error.strerror}: make room there, or choose another place"
        ) from None


def _owners_alone(path: str, flags: int) -> int:
    """Open a file that nobody else can read at any moment, also where one lay there."""
    Path(path).unlink(missing_ok=True)
    return os.open(path, flags, 0o600)


def _read(entry: Mapping[str, Any], study: Study) -> Statistics | str:
    """One class of a result file, from its exact numbers alone."""
    from voxring.learn.moments import fraction_of

    if "withheld" in entry:
        return str(entry["withheld"])
    count = entry["voxels"]
    if not isinstance(count, int):
        raise TypeError("voxels is no integer")
    found = integers_of(entry.get("statistics", {}), study)
    return Statistics(count, fraction_of(entry["sum"]), fraction_of(entry["sdsum"]), found)
