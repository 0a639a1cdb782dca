"""How a model met ground truth: scores of every class, the confusion matrix, ROC curves and calibration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from typing import Any

from voxring.report import svg
from voxring.report.markup import Html, facts, folded, join, table, tag
from voxring.report.page import Section, page

_SCORES = (
    ("dice", "Dice"),
    ("sensitivity", "sensitivity"),
    ("specificity", "specificity"),
    ("precision", "precision"),
    ("auc", "AUC"),
)
_HEAD = ("class", "voxels", *(title for _, title in _SCORES), "calibration error")


def evaluation(made: Mapping[str, Any]) -> Html:
    """Return what `voxring.evaluate.document` says, with diagrams.

    A class that a study withheld has ``{"withheld": reason}`` among the classes.
    """
    classes: Mapping[str, Mapping[str, Any]] = made["classes"]
    told = {name: one for name, one in classes.items() if "withheld" not in one}
    parts = [
        tag(
            "p",
            f"Over {made['voxels']:,} {_REGION[made['region']]}. Each class is held against all others together. "
            f"{_score(made['accuracy'])} of the labelled voxels were given their class.",
        ),
        table(_HEAD, _rows(classes), label="Scores of every class"),
        tag("h3", "Confusion"),
        *_confusion(made, classes),
    ]
    parts += [_class(name, number, one) for number, (name, one) in enumerate(told.items())]
    return join(parts)


_REGION = {"labelled": "voxels to which the ground truth gives a class", "everywhere": "voxels, also those of no class"}


def evaluation_report(made: Mapping[str, Any], *, finished: datetime | None = None) -> str:
    """Return the report of ``voxring evaluate`` as one HTML page.

    Parameters
    ----------
    made : mapping
        What stands in its file: `voxring.evaluate.document`, with ``model``, ``classifier`` and ``images``.
    finished : datetime, optional
        When it was made.

    Examples
    --------
    >>> from voxring.evaluate import Counts, document
    >>> made = {"model": "ab", "classifier": "lda", "images": 0} | document(Counts.none(["liver"]))
    >>> "<h2 id=\\"evaluation-title\\">Evaluation</h2>" in evaluation_report(made)
    True
    """
    told: list[tuple[object, object]] = [("classifier", made["classifier"]), ("images", f"{made['images']:,}")]
    if finished is not None:
        when = f"{finished:%Y-%m-%d %H:%M} {finished.tzname() or ''}"
        told.append(("made", tag("time", when, datetime=finished.isoformat())))
    digest = tag("p", tag("span", "model digest ", class_="unit"), tag("code", made["model"]))
    return page(
        kind="A model against ground truth",
        title=f"Evaluation of {made['classifier']}",
        head=join([facts(told), digest]),
        sections=[Section("evaluation", "Evaluation", evaluation(made))],
        foot="This page holds one hospital's own counts. It needs no network.",
        alarm=(
            "This page holds one hospital's own counts and must not leave it.",
            "To evaluate a model over several hospitals, none of which shows its own, write [evaluate] into a study.",
        ),
    )


def _rows(classes: Mapping[str, Mapping[str, Any]]) -> Iterator[Sequence[object]]:
    for name, one in classes.items():
        if "withheld" in one:
            yield name, tag("span", "withheld", class_="withheld"), *[""] * (len(_SCORES) + 1)
        else:
            scores = [_score(one[key]) for key, _ in _SCORES]
            yield name, f"{one['tp'] + one['fn']:,}", *scores, _score(one["calibration"]["error"])


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _confusion(made: Mapping[str, Any], classes: Mapping[str, Mapping[str, Any]]) -> Iterator[Html]:
    names: Sequence[str] = made["confusion"]["classes"]
    counts: Sequence[Sequence[int]] = made["confusion"]["counts"]
    # Voxels of no class stand there when they were counted, and are given none where the model has a class more.
    rows = [i for i, name in enumerate(names) if "withheld" not in classes.get(name, {}) and (i or sum(counts[0]))]
    columns = [j for j in range(len(names)) if j or any(row[0] for row in counts)]
    if made["region"] == "labelled":
        rows = [i for i in rows if i]
    shares = [[counts[i][j] / total if (total := sum(counts[i])) else None for j in columns] for i in rows]
    of, given = [names[i] for i in rows], [names[j] for j in columns]
    caption = "Of the voxels of each class, one a row, how many were given which class."
    picture = svg.confusion(of, given, shares, "Confusion matrix, as shares of each row")
    box = tag("div", picture, class_="scroll", tabindex=0, role="region", aria_label="Confusion matrix, diagram")
    yield tag("figure", box, tag("figcaption", caption))
    cells = [(names[i], *(f"{counts[i][j]:,}" for j in columns)) for i in rows]
    yield folded("the counts", table(("class", *(f"given {name}" for name in given)), cells, label="Confusion matrix"))


def _class(name: str, number: int, one: Mapping[str, Any]) -> Html:
    heading = f"evaluated-{number}"
    voxels, positives, promised = (one["calibration"][key] for key in ("voxels", "positives", "promised"))
    kept = [k for k, count in enumerate(voxels) if count]
    reliability = [(promised[k] / voxels[k], positives[k] / voxels[k]) for k in kept]
    figures = []
    points = _roc(one["roc"]["positives"], one["roc"]["negatives"])
    if points:
        drawn = svg.curve(points, f"ROC curve of {name}", across="1 − specificity", up="sensitivity")
        figures.append(tag("figure", drawn, tag("figcaption", f"ROC curve, AUC {_score(one['auc'])}")))
    if reliability:
        drawn = svg.curve(
            reliability, f"Calibration of {name}", across="mean probability", up="share of the class", dots=True
        )
        error = _score(one["calibration"]["error"])
        figures.append(tag("figure", drawn, tag("figcaption", f"Calibration, expected error {error}")))
    step = 1 / len(voxels)
    bins = [
        (f"{k * step:.4g} to {(k + 1) * step:.4g}", f"{voxels[k]:,}", f"{positives[k]:,}", f"{promised[k]:,.2f}")
        for k in range(len(voxels))
    ]
    head = ("probability", "voxels", "of the class", "promised")
    return tag(
        "section",
        tag("h3", name, id=heading),
        tag("div", *figures, class_="figures"),
        folded("voxels by probability", table(head, bins, label=f"Calibration of {name}")),
        aria_labelledby=heading,
    )


def _roc(positives: Sequence[int], negatives: Sequence[int]) -> list[tuple[float, float]]:
    """(false positive rate, true positive rate), from a threshold above 1 down to 0."""
    if not (any(positives) and any(negatives)):
        return []
    false, true = (list(accumulate(reversed(counts), initial=0)) for counts in (negatives, positives))
    found = [(x / false[-1], y / true[-1]) for x, y in zip(false, true, strict=True)]
    return [point for k, point in enumerate(found) if k == 0 or point != found[k - 1]]
