"""The report of a finished study: what its researcher learned, and what everybody agreed to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any

from voxring.report import svg
from voxring.report.additive import additive
from voxring.report.evaluation import evaluation
from voxring.report.markup import Html, facts, folded, join, table, tag
from voxring.report.page import Section, page
from voxring.ring.message import VERSION
from voxring.ring.order import RESEARCHER, Ring
from voxring.ring.sheet import sheet
from voxring.study import Study

_EXACT = (
    ("sum", "sum of local means"),
    ("mean", "global mean μ"),
    ("sdsum", "sdsum Σ(x − μ)²"),
    ("variance", "variance σ²"),
)
_STEPS = {
    "gathering": "asking to start over",
    "greeting": "greeting the parties",
    "keeping": "coin: all keep the same",
    "committing": "coin: commitments",
    "opening": "coin: openings",
    "surveying": "parties find their landmarks",
    "images": "secure sum of images",
    "landmarks": "secure sum of landmarks",
    "scaling": "release of the scale",
    "computing": "parties compute their totals",
    "voxels": "secure sum of n",
    "releasing": "release of n",
    "sum": "secure sum of local means",
    "averaging": "release of μ",
    "sdsum": "secure sum of sdsum",
    "statistics": "secure sum of the statistics",
    "weighing": "weights of a step",
    "stepping": "parties compute a step",
    "step": "secure sum of a step",
    "closing": "end",
}
_PACKAGES = ("voxring", "cryptography", "msgspec", "numba", "numpy", "pynng", "pyopenssl")


def result_report(
    document: Mapping[str, Any],
    study: Study,
    *,
    rings: Sequence[Ring] = (),
    steps: Sequence[tuple[str, float]] = (),
    finished: datetime | None = None,
) -> str:
    """Return the report of a finished study as one HTML page.

    Parameters
    ----------
    document : mapping
        What stands in the result file: `voxring.totals.result_document`.
    study : Study
        The study that ran.
    rings : sequence of Ring
        Those of the study, when they are known.
    steps : sequence of (name, seconds)
        How long each step of the session took.
    finished : datetime, optional
        When the session ended.

    Examples
    --------
    >>> study = Study.of(name="liver", classes={"lesion": 1}, party=[{"name": n} for n in "abc"])
    >>> document = {"study": "liver", "digest": study.digest, "parties": 3, "classes": {"lesion": {"withheld": "few"}}}
    >>> "<h1>liver</h1>" in result_report(document, study)
    True
    """
    classes: Mapping[str, Mapping[str, Any]] = document["classes"]
    noisy = "differential_privacy" in document
    sections = [
        Section("statistics", "Statistics", _statistics(classes, study)),
        *([Section("noise", "Noise", _noise(document))] if noisy else []),
        *_logistic(document),
        *_evaluation(document),
        Section("classes", "Noisy numbers" if noisy else "Exact numbers", _classes(document, classes)),
        Section("rings", "Rings", _rings(rings, study)),
        *_disclosure(study),
        *([Section("time", "Time", _times(steps))] if steps else []),
        Section("study", "Study and versions", _study(study, document)),
    ]
    return page(
        kind="Result of a voxring study",
        title=str(document["study"]),
        head=_head(document, classes, steps, finished),
        sections=sections,
        foot="This page holds what the researcher learned, and no hospital's own number. It needs no network.",
    )


def _head(
    document: Mapping[str, Any],
    classes: Mapping[str, Mapping[str, Any]],
    steps: Sequence[tuple[str, float]],
    finished: datetime | None,
) -> Html:
    released = [one for one in classes.values() if "withheld" not in one]
    told: list[tuple[object, object]] = [
        ("parties", document["parties"]),
        ("classes released", f"{len(released)} of {len(classes)}"),
        ("voxels, all classes", f"{sum(one['voxels'] for one in released):,}"),
    ]
    skipped = document.get("skipped")
    if skipped:
        told.append(("images left out", ", ".join(f"{party}: {count:,}" for party, count in skipped.items())))
    if finished is not None:
        told.append(
            (
                "finished",
                tag("time", f"{finished:%Y-%m-%d %H:%M} {finished.tzname() or ''}", datetime=finished.isoformat()),
            )
        )
    if steps:
        told.append(("session", f"{sum(seconds for _, seconds in steps):.1f} s"))
    digest = tag("p", tag("span", "study digest ", class_="unit"), tag("code", document["digest"]))
    return join([facts(told), digest])


def _statistics(classes: Mapping[str, Mapping[str, Any]], study: Study) -> Html:
    rows: list[Sequence[object]] = []
    drawn = []
    for name, one in classes.items():
        if "withheld" in one:
            rows.append((name, "", tag("span", "withheld", class_="withheld"), ""))
            continue
        rows.append((name, f"{one['voxels']:,}", _decimal(one["mean_float"]), _decimal(one["std_float"])))
        drawn.append((name, one["mean_float"], one["std_float"]))
    parts = [table(("class", "voxels n", "mean μ", "sigma σ"), rows, label="Statistics of every class")]
    reasons = [(name, one["withheld"]) for name, one in classes.items() if "withheld" in one]
    if reasons:
        parts.append(tag("h3", "Withheld"))
        parts.append(table(("class", "reason"), reasons, label="Withheld classes", numbers=False))
    if drawn:
        picture = svg.deviations(drawn, "Mean of each class, with one standard deviation to both sides")
        caption = "Mean μ of each class; the line reaches one standard deviation σ to both sides."
        parts.append(_figure(picture, caption))
    parts.append(
        tag(
            "p",
            f"μ is the mean of the local means, over a window of {_window(study)}; σ is the square root of "
            "sdsum / (n − 1). Both are rounded here alone: the exact numbers follow.",
            class_="unit",
        )
    )
    return join(parts)


def _noise(document: Mapping[str, Any]) -> Html:
    table_of = document["differential_privacy"]
    delta = f" and δ = {table_of['delta']:g}" if table_of["delta"] else ""
    rows = []
    for name, one in document["classes"].items():
        if "noise" in one:
            (few, many), (low, high) = one["noise"]["voxels_interval"], one["noise"]["mean_interval"]
            off = one["noise"]["std"]
            rows.append(
                (
                    name,
                    f"{few:,} to {many:,}",
                    f"{_decimal(low)} to {_decimal(high)}",
                    f"{off['voxels']:,.6g}",
                    f"{off['sum']:,.6g}",
                    f"{off['sdsum']:,.6g}",
                )
            )
    told = tag(
        "p",
        "All numbers are noisy, also those below: the parties added noise in shares, so that a single patient hardly "
        f"shows (differential privacy, {table_of['mechanism']}, ε = {table_of['epsilon']:g}{delta} for each run). "
        f"Each interval holds what the number is without noise at {table_of['level']:.0%}.",
    )
    head = ("class", "voxels n", "mean μ", "std in n", "std in sum", "std in sdsum")
    parts = [told, table(head, rows, label="Noise in the numbers of every class", wide=True)]
    blocks = [
        (name, block.replace("_", " "), _from_to(off))
        for name, one in document["classes"].items()
        for block, off in one.get("noise", {}).get("std", {}).items()
        if isinstance(off, list)
    ]
    if blocks:
        columns = ("class", "additive statistics", "std in each number")
        parts.append(table(columns, blocks, label="Noise in the additive statistics of every class"))
    return join(parts)


def _from_to(values: Sequence[float]) -> str:
    least, largest = f"{min(values):,.6g}", f"{max(values):,.6g}"
    return least if least == largest else f"{least} to {largest}"


def _figure(picture: Html, caption: str) -> Html:
    box = tag(
        "div", picture, class_="scroll", tabindex=0, role="region", aria_label=f"{caption.partition(';')[0]}, diagram"
    )
    return tag("figure", box, tag("figcaption", caption))


def _evaluation(document: Mapping[str, Any]) -> Iterator[Section]:
    made = document.get("evaluation")
    if made is None:
        return
    digest = tag("p", tag("span", "model digest ", class_="unit"), tag("code", made["model"]))
    yield Section("evaluation", "Evaluation of a model", join([digest, evaluation(made)]))


def _logistic(document: Mapping[str, Any]) -> Iterator[Section]:
    made = document.get("logistic")
    if made is None:
        return
    if "withheld" in made:
        yield Section("logistic", "Logistic regression", tag("p", made["withheld"], class_="withheld"))
        return
    released = [name for name, one in document["classes"].items() if "withheld" not in one]
    titles = ("class", "intercept", *document["features"])
    rows = zip(released[-len(made["weights_float"]) :], made["weights_float"], strict=True)
    told = tag(
        "p",
        f"{made['steps']} steps, C = {made['strength']:g}; "
        + ("the optimum." if made["converged"] else "not the optimum yet: the study allows no more steps.")
        + " Weights are those of features in standardised units."
        + (f" {released[0]} has the score 0." if len(made["weights_float"]) == 1 else ""),
    )
    shown = [(name, *(_decimal(weight) for weight in row)) for name, row in rows]
    yield Section(
        "logistic", "Logistic regression", join([told, table(titles, shown, label="Weights of every class", wide=True)])
    )


def _classes(document: Mapping[str, Any], classes: Mapping[str, Mapping[str, Any]]) -> Html:
    told = tag(
        "p", "Each number is a fraction in lowest terms. Open one, and click it to select all of it, to copy it."
    )
    parts = []
    for number, (name, one) in enumerate(classes.items()):
        if "withheld" in one:
            continue
        heading = f"class-{number}"
        exact = [_fraction(what, *one[key]) for key, what in _EXACT]
        counted = tag("p", tag("span", "voxels n ", class_="unit"), f"{one['voxels']:,}")
        more = additive(one["statistics"], document.get("features", ()), name) if one.get("statistics") else ""
        parts.append(tag("section", tag("h3", name, id=heading), counted, *exact, more, aria_labelledby=heading))
    return join([told, tag("div", *parts, class_="classes")])


def _fraction(what: str, numerator: str, denominator: str) -> Html:
    shown = tag(
        "span",
        tag("b", what),
        " ",
        tag("span", _decimal(float(Fraction(int(numerator), int(denominator))))),
        class_="value",
    )
    # The slash, not a bar: what is copied must be what a calculator takes.
    exact = numerator if denominator == "1" else f"{numerator}/{denominator}"
    return folded(shown, tag("code", exact, class_="exact", tabindex=0, role="region", aria_label=f"{what}, exact"))


def _decimal(value: float) -> str:
    """Six decimals, so that a column lines up; where they would say nothing, as many digits as there are to say."""
    small = value != 0 and abs(value) < 1e-3
    return (f"{value:.6g}" if small or abs(value) >= 1e15 else f"{value:,.6f}").replace("-", "−")


def _rings(rings: Sequence[Ring], study: Study) -> Html:
    parts = [
        tag(
            "p",
            "Shares go round a ring from its master, the researcher, in the way of the arrows, and back. R is the "
            "researcher. Who stands where follows from the coin that the parties drew together.",
        )
    ]
    if not rings:
        return join([*parts, tag("p", "The rings of this session are not known here.")])
    numbers = {name: number for number, name in enumerate(study.parties, 1)}
    figures = []
    for number, ring in enumerate(rings, 1):
        said = " → ".join([*ring.members, RESEARCHER])
        label = f"Ring {number} of {len(rings)}: {said}"
        drawn = svg.ring(ring.members, [numbers.get(name, 0) for name in ring.members], label)
        figures.append(tag("figure", drawn, tag("figcaption", f"Ring {number}: {said}")))
    if len(study.parties) > svg.MOST_NAMES:
        rows = [(number, name) for name, number in numbers.items()]
        parts.append(table(("number", "party"), rows, label="Numbers of the parties", numbers=False))
    return join([*parts, tag("div", *figures, class_="figures")])


def _disclosure(study: Study) -> Iterator[Section]:
    parts = []
    for section in sheet(study).sections:
        parts.append(tag("h3", section.title))
        parts += [tag("p", sentence) for sentence in section.sentences]
        if section.head:
            parts.append(
                table(section.head, section.rows, label=section.title, numbers=False, wide=len(section.head) > 3)
            )
    yield Section("disclosure", "Disclosure sheet", join(parts))


def _times(steps: Sequence[tuple[str, float]]) -> Html:
    steps = [(_STEPS.get(step, step), seconds) for step, seconds in steps]
    parts = [_figure(svg.times(steps, "Time of each step of the session"), "Each step, one after the other.")]
    parts.append(
        folded(
            "as a table",
            table(
                ("step", "seconds"), [(what, f"{seconds:.3f}") for what, seconds in steps], label="Time of each step"
            ),
        )
    )
    return join(parts)


def _scale(document: Mapping[str, Any]) -> Iterator[tuple[object, object]]:
    scale = document.get("standard_scale")
    if scale:
        percentiles = ", ".join(f"{percentile:g}" for percentile in scale["percentiles"])
        yield "images that the standard scale is of", f"{scale['images']:,}"
        yield f"agreed landmarks of the percentiles {percentiles}", ", ".join(map("/".join, scale["landmarks"]))


def _study(study: Study, document: Mapping[str, Any]) -> Html:
    privacy = study.privacy
    agreed: list[tuple[object, object]] = [
        ("window", _window(study)),
        ("border", study.window.border),
        ("standardisation", study.standardise.method),
        *_scale(document),
        ("least voxels of a class", f"{privacy.min_voxels:,}"),
        ("least patients of a class", f"{privacy.min_patients:,}"),
        ("collusion threshold", privacy.collusion),
    ]
    parties = [(party.name, party.address or "not in the study") for party in study.party]
    labels = [(name, label) for name, label in study.classes.items()]
    software = [*_versions(), ("Python", python_version()), ("protocol", VERSION)]
    return join(
        [
            facts(agreed),
            tag("h3", "Parties"),
            table(("party", "address"), parties, label="Parties", numbers=False),
            tag("h3", "Classes"),
            table(("class", "label"), labels, label="Classes and their labels", numbers=False),
            tag("h3", "Versions, at the researcher"),
            table(("software", "version"), software, label="Versions", numbers=False),
        ]
    )


def _versions() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def _window(study: Study) -> str:
    size = study.window.size
    return f"{size} voxels along every axis" if isinstance(size, int) else f"{' × '.join(map(str, size))} voxels"
