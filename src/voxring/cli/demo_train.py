"""``voxring demo --train``: is more data better? Hospitals train a classifier alone, and together."""

from __future__ import annotations

import csv
import html
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from voxring.cli.progress import Progress
from voxring.cli.report import report_path, write_report
from voxring.errors import StudyError, VoxringError
from voxring.result import write_whole

if TYPE_CHECKING:
    from voxring.evaluate import Counts
    from voxring.learn import Model
    from voxring.phantom import Scanner
    from voxring.study import Study
    from voxring.totals import LocalTotals, Statistics

TOGETHER = "together"
_TRAINED_ON, _HELD_OUT = 2, 2  # patients of each made-up hospital
_STUDY = """name = "lesions of made-up patients"
classes = { lesion = 1, organ = 2, fat = 3 }

[window]
size = 5
axes = 3

[standardise]
method = "rescale"
range = [-1000, 1000]

[[feature]]
kind = "intensity"

[[feature]]
kind = "mean"
window = 3

[[feature]]
kind = "mean"
window = 7

[[feature]]
kind = "std"
window = 5

[[feature]]
kind = "gradient"

[statistics]
gram = true
"""
_MADE_UP = """
These patients are made up, and how hospitals and patients differ was put in on purpose (voxring.phantom): the table
shows how to ask whether more data is better, not that it is. Ask it of your own images with --data."""


def run(
    folder: Path,
    classifier: str,
    study: Study | None,
    manifests: Mapping[str, Path],
    held_out: Path | None,
    plot: Path | None,
    report: Path | None,
    as_json: bool,
) -> int:
    """Train alone and together, and print the Dice of each on patients that none was trained on."""
    from voxring import simulation
    from voxring.totals import LocalTotals, pooled

    page = report_path(folder / "result.json", report)
    start = time.monotonic()
    made_up = study is None or held_out is None
    with Progress() as progress:
        if study is None or held_out is None:
            progress("demo", "making up patients")
            study, manifests, held_out = make_up(folder)
        study = simulation.with_parties(study, list(manifests))
        if not study.statistics.gram:
            raise StudyError("the study asks for no sums to train on: write gram = true under [statistics]")
        progress("demo", "each hospital on its own (compiling the kernels first; they are kept for later runs)")
        alone = {name: _alone(manifest, study) for name, manifest in manifests.items()}
        progress("demo", f"{len(manifests)} hospitals and a researcher together, each in a process of its own")
        together = simulation.simulate(study, manifests, notify=progress)
        if study.agrees:  # alone, each has a standard scale of its own: the totals do not add up
            in_the_open = simulation.pooled_result(study, manifests).answer
        else:
            in_the_open = pooled(sum((totals for _, totals in alone.values()), LocalTotals()), study)
        equal = in_the_open == together.answer
        together.save(folder / "result.json")
        progress("demo", "classifying the patients that none was trained on")
        models = {name: _model(pooled(totals, own), own, classifier) for name, (own, totals) in alone.items()}
        models[TOGETHER] = _model(together.answer, together.agreed, classifier)
        counts = {name: _evaluated(model, held_out) for name, model in models.items() if not isinstance(model, str)}
        progress("demo", f"done in {time.monotonic() - start:.1f} s")
    trained = models[TOGETHER]
    if isinstance(trained, str):
        raise StudyError(f"no classifier can be made of all together: {trained}")
    trained.save(folder / "model.json")
    write_report(together, together.course, page)
    scores = {name: _scores(counts.get(name), study) for name in models}
    if plot is not None:
        write_whole(plot, dice_plot(scores, list(study.classes)).encode())
    if as_json:
        click.echo(msgspec.json.encode({"classifier": classifier, "held_out": scores, "equal": equal}).decode())
    else:
        _print(scores, list(study.classes))
    for name, model in models.items():
        if isinstance(model, str):
            click.echo(f"{name}: no classifier: {model}", err=True)
    click.echo(f"sums of all together equal to pooled, bit for bit: {'yes' if equal else 'NO'}", err=as_json)
    if made_up:
        click.echo(_MADE_UP, err=as_json)
    return 0 if equal else 1


def make_up(folder: Path) -> tuple[Study, dict[str, Path], Path]:
    """Write a study, five hospitals with patients and a manifest each, and one of patients that are held out."""
    from voxring.phantom import Scanner
    from voxring.study import parse_study

    hospitals = {
        "north": Scanner(noise=30, blur=1, contrast=1.0),
        "east": Scanner(noise=40, blur=1, contrast=0.85),
        "centre": Scanner(noise=35, blur=1, contrast=1.1),
        "south": Scanner(noise=45, blur=3, contrast=1.2),
        "west": Scanner(noise=50, blur=3, contrast=0.9),
    }
    (folder / "study.toml").write_text(_STUDY, encoding="utf-8")
    manifests, held_out = {}, []
    for name, scanner in hospitals.items():
        rows = _write_patients(folder / name, name, scanner)
        manifests[name] = _write_manifest(folder / name / "manifest.csv", rows[:_TRAINED_ON])
        held_out += [(f"{name}/{image}", f"{name}/{truth}") for image, truth in rows[_TRAINED_ON:]]
    return parse_study(_STUDY), manifests, _write_manifest(folder / "held-out.csv", held_out)


def _write_patients(folder: Path, name: str, scanner: Scanner) -> list[tuple[str, str]]:
    import numpy as np

    from voxring.phantom import patient

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(_TRAINED_ON + _HELD_OUT):
        image, truth = patient(f"{name}-{number}", scanner)
        np.save(folder / f"image{number}.npy", image)
        np.save(folder / f"truth{number}.npy", truth)
        rows.append((f"image{number}.npy", f"truth{number}.npy"))
    return rows


def _write_manifest(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "ground_truth"), *rows])
    return path


def _alone(manifest: Path, study: Study) -> tuple[Study, LocalTotals]:
    """A hospital's totals, and the study that they are by: nothing is withheld, and landmarks are those of its images.

    Raises
    ------
    StudyError
        Its landmarks do not rise.
    """
    from voxring.batch import party_totals
    from voxring.landmarks import standard_scale
    from voxring.study import Privacy

    own = msgspec.structs.replace(study, privacy=Privacy())
    if own.agrees:
        own = own.with_landmarks(standard_scale(party_totals(manifest, own), own))
    return own, party_totals(manifest, own)


def _model(answer: Mapping[str, Statistics | str], study: Study, classifier: str) -> Model | str:
    """The classifier of some hospitals' sums, or why there is none."""
    from voxring.learn import Model, Moments
    from voxring.totals import result_document

    try:
        return Model.of(study, Moments.of_result(result_document(answer, study), study), classifier)
    except VoxringError as error:
        return str(error)


def _evaluated(model: Model, manifest: Path) -> Counts:
    from voxring.batch import read_manifest
    from voxring.classify import class_names, evaluate_image
    from voxring.evaluate import Counts

    of_each = (evaluate_image(row.image, row.ground_truth, model) for row in read_manifest(manifest))
    return sum(of_each, Counts.none(class_names(model)))


def _scores(counts: Counts | None, study: Study) -> dict[str, float | None]:
    """Dice of each class, and the mean of those that are numbers; None where nothing was counted."""
    if counts is None:
        return dict.fromkeys((*study.classes, "mean"))
    dice = {name: counts.outcomes(name).dice for name in study.classes}
    present = [one for one in dice.values() if one is not None]
    scores = {name: None if one is None else float(one) for name, one in dice.items()}
    return scores | {"mean": float(sum(present) / len(present)) if present else None}


def _print(scores: Mapping[str, Mapping[str, float | None]], classes: Sequence[str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, title="Dice on patients that none was trained on", title_justify="left")
    table.add_column("trained on")
    for title in (*classes, "mean"):
        table.add_column(title, justify="right")
    for name, of_name in scores.items():
        cells = ["–" if one is None else f"{one:.3f}" for one in of_name.values()]
        table.add_row(name if name == TOGETHER else f"{name} alone", *cells, style="bold" if name == TOGETHER else "")
    Console(highlight=False, markup=False).print(table)


def dice_plot(scores: Mapping[str, Mapping[str, float | None]], classes: Sequence[str]) -> str:
    """Draw the Dice of each class as SVG: a ring for each hospital alone, a disc for all together."""
    columns = [*classes, "mean"]
    width, height, left, top = 90 * len(columns) + 90, 320, 60, 40
    bottom = height - 50

    def y(score: float) -> float:
        return bottom - score * (bottom - top)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12" role="img">',
        "<title>Dice on patients that none was trained on: hospitals alone, and together</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="20">Dice: ○ a hospital alone, ● all together</text>',
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line x1="{left}" x2="{width - 20}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for number, column in enumerate(columns):
        x = left + 45 + 90 * number
        parts.append(f'<text x="{x}" y="{bottom + 24}" text-anchor="middle">{html.escape(column)}</text>')
        for name in sorted(scores, key=TOGETHER.__ne__):  # the disc first: it hides no ring
            score = scores[name][column]
            if score is None:
                continue
            fill = "#0b5" if name == TOGETHER else "none"
            stroke = "#0b5" if name == TOGETHER else "#555"
            parts.append(
                f'<circle cx="{x}" cy="{y(score):.1f}" r="6" fill="{fill}" stroke="{stroke}" stroke-width="1.5">'
                f"<title>{html.escape(name)}: {score:.3f}</title></circle>"
            )
    return "\n".join([*parts, "</svg>", ""])
