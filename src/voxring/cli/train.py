"""``voxring train``: a classifier from a result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from voxring.cli.report import check_writable

if TYPE_CHECKING:
    from voxring.learn import Model
    from voxring.study import Study

COLLINEAR = 1e8
"""Of the correlations' eigenvalues, largest over least: beyond it, scores hang on the last digits of the features."""

FEW = 10
"""Voxels for each number of a class's covariance; with fewer, it is a poor estimate."""


@click.command()
@click.argument("result", type=click.Path(path_type=Path))
@click.option(
    "--study", type=click.Path(path_type=Path), required=True, help="The study file that the result was made with."
)
@click.option(
    "--classifier",
    type=click.Choice(["lda", "qda", "gnb", "ridge", "logistic"]),
    default="lda",
    show_default=True,
    help="Linear or quadratic discriminant analysis, Gaussian naive Bayes, ridge regression, or, of a study with "
    "[logistic], logistic regression.",
)
@click.option("--shrinkage", metavar="NUMBER|oas", help="Of lda and qda: 0 to 1, or estimated.  [default: none]")
@click.option("--smoothing", type=float, help="Of gnb: this share of the largest variance is added.  [default: 1e-9]")
@click.option("--alpha", type=float, help="Of ridge: the weight of squared coefficients.  [default: 1]")
@click.option("--equal-priors", is_flag=True, help="All classes equally likely, not as their voxels are.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where to write the model, as JSON.")
@click.option("--skops", type=click.Path(path_type=Path), help="Write it also as an estimator of scikit-learn.")
@click.option("--onnx", type=click.Path(path_type=Path), help="Write it also as an ONNX graph.")
def train(
    result: Path,
    study: Path,
    classifier: str,
    shrinkage: str | None,
    smoothing: float | None,
    alpha: float | None,
    equal_priors: bool,
    out: Path,
    skops: Path | None,
    onnx: Path | None,
) -> int:
    """Make a classifier from the sums in RESULT, which a study with gram = true under [statistics] gave.

    No voxel is needed, and nobody is asked anything: the model is a function of the result.
    """
    from voxring.learn import Model, Moments
    from voxring.learn.export import write_onnx, write_skops
    from voxring.result import agreed_study, check_same, read_result, weights_of
    from voxring.study import load_study

    for path in filter(None, (out, skops, onnx)):
        check_writable(path)
    checked = load_study(study)
    document = read_result(result)
    warnings = check_same(document, checked, result, study)
    moments = Moments.of_result(document, checked)
    count = len(moments.classes)
    model = Model.of(
        agreed_study(document, checked, result),
        moments,
        classifier,
        priors=[1 / count] * count if equal_priors and count else None,
        shrinkage=_shrinkage(shrinkage),
        smoothing=smoothing,
        alpha=alpha,
        weights=weights_of(document, result) if classifier == "logistic" else None,
    )
    if classifier == "logistic" and not document["logistic"].get("converged"):
        warnings.append("the weights are not the optimum: raise logistic.steps in the study, or lower strength")
    model.save(out)
    if skops is not None:
        write_skops(model, skops)
    if onnx is not None:
        write_onnx(model, onnx)
    _summary(model, checked, warnings)
    return 0


def _shrinkage(given: str | None) -> float | str | None:
    if given is None or given == "oas":
        return given
    try:
        return float(given)
    except ValueError:
        raise click.BadParameter(f"expected a number from 0 to 1 or oas, got {given!r}") from None


def _summary(model: Model, study: Study, warnings: list[str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from voxring.learn.discriminant import condition, within_classes

    moments = model.moments
    table = Table(box=SIMPLE_HEAD)
    table.add_column("class")
    for title in ("label", "voxels", "share", "condition"):
        table.add_column(title, justify="right")
    for k, name in enumerate(moments.classes):
        number = condition(moments.covariance(k))
        table.add_row(
            name,
            str(model.values[k]),
            f"{moments.counts[k]:,}",
            f"{moments.counts[k] / moments.count:.4f}",
            f"{number:.3g}",
        )
        if model.classifier == "qda" and number > COLLINEAR:
            warnings.append(f"{name}: two features or more say nearly the same (condition {number:.1e})")
        if moments.counts[k] < FEW * len(moments.features):
            warnings.append(f"{name}: {moments.counts[k]:,} voxels are few for {len(moments.features)} features")
    together = condition(within_classes(moments))
    if together > COLLINEAR and model.classifier in ("lda", "ridge"):
        warnings.append(f"two features or more say nearly the same within the classes (condition {together:.1e})")
    for name in study.classes:
        if name not in moments.classes:
            warnings.append(f"{name} was withheld: the model never predicts it")
    if any(model.values[k] != study.classes[name] for k, name in enumerate(moments.classes)):
        warnings.append("labels are places in the study, since not all of its labels are integers from 1 to 65,535")
    Console(highlight=False, markup=False).print(table)
    click.echo(f"{model.classifier} of {', '.join(moments.features)}; condition within the classes {together:.3g}")
    click.echo(f"digest {model.digest}")
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
