"""``voxring evaluate``: a model against ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from voxring.cli.batch import device_options
from voxring.cli.progress import Progress
from voxring.cli.report import check_writable, print_scores, warn_of_axes
from voxring.result import write_whole

if TYPE_CHECKING:
    from voxring.devices import Device
    from voxring.evaluate import Region


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where to write the counts, as JSON.")
@click.option(
    "--study",
    type=click.Path(path_type=Path),
    help="A study file whose classes say how this ground truth marks those of the model's study, when otherwise.",
)
@click.option(
    "--everywhere", is_flag=True, help="Count the voxels without a class, too; else those of the model's classes alone."
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="Also write a page for a browser, with ROC curves, calibration and the confusion matrix.",
)
@device_options("counts")
@click.option("--json", "as_json", is_flag=True, help="Print the document as JSON on stdout.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def evaluate(
    model: Path,
    manifest: Path,
    out: Path,
    study: Path | None,
    everywhere: bool,
    report: Path | None,
    device: Device,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Classify the images of MANIFEST with MODEL, and count how that meets their ground truth.

    For every class: Dice, sensitivity, specificity, the ROC curve and its area, and calibration, all from exact counts
    over the voxels of all images together. Nothing leaves this machine; the counts are this hospital's own.
    """
    from datetime import UTC, datetime

    import msgspec

    from voxring.batch import read_manifest
    from voxring.classify import class_names, evaluate_image
    from voxring.devices import in_words, taken, takes_gpu
    from voxring.evaluate import Counts, document
    from voxring.learn import Model
    from voxring.report import evaluation_report
    from voxring.study import load_study

    read, rows = Model.load(model), read_manifest(manifest)
    warn_of_axes(read.study)
    classes = None if study is None else load_study(study).classes
    for path in filter(None, (out, report)):
        check_writable(path)
    counts = Counts.none(class_names(read))
    takes_gpu(device)  # or says why not, before an image is read
    with Progress(quiet=quiet) as progress:
        for number, row in enumerate(rows, 1):
            progress("evaluate", f"image {number} of {len(rows)}")
            with taken() as devices:
                counts += evaluate_image(
                    row.image, row.ground_truth, read, classes=classes, device=device, threads=threads
                )
            progress("evaluate", f"image {number} of {len(rows)} computed on {in_words(devices)}")
    region: Region = "everywhere" if everywhere else "labelled"
    made = {"model": read.digest, "classifier": read.classifier, "images": len(rows), **document(counts, region)}
    content = msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n"
    write_whole(out, content)
    if report is not None:
        write_whole(report, evaluation_report(made, finished=datetime.now(UTC)).encode())
    if as_json:
        click.echo(content.decode(), nl=False)
    else:
        print_scores(counts, region)
