"""``voxring classify``: a model on new images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from voxring.cli.batch import device_options
from voxring.cli.progress import Progress
from voxring.cli.report import warn_of_axes

if TYPE_CHECKING:
    from voxring.devices import Device


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="IMAGE…")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for the maps; made if missing.",
)
@click.option("--probabilities", is_flag=True, help="Also write a map of each class's probability.")
@device_options("maps")
@click.option("--force", is_flag=True, help="Take the place of maps that are there.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def classify(
    model: Path,
    images: tuple[Path, ...],
    out: Path,
    probabilities: bool,
    device: Device,
    threads: int | None,
    force: bool,
    quiet: bool,
) -> None:
    """Give every voxel of new images a class, with the MODEL that voxring train wrote.

    An IMAGE is a file, or a folder with a DICOM series. Its maps have its geometry and, where that can hold them, its
    format: labels of a DICOM series are a DICOM SEG (pip install 'voxring[dicom-seg]'), probabilities of one NIfTI.
    Standardisation and features are those of the study that the model was trained in.
    """
    from voxring.classify import classify_image, image_stem
    from voxring.devices import in_words, taken, takes_gpu
    from voxring.errors import StudyError
    from voxring.learn import Model

    read = Model.load(model)
    warn_of_axes(read.study)
    stems = [image_stem(path) for path in images]
    for path, stem in zip(images, stems, strict=True):
        if stems.count(stem) > 1:
            raise StudyError(f"{path}: another image has the same name, and so would its maps: classify them apart")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"{out}: the folder cannot be made: {error.strerror}") from None
    takes_gpu(device)  # or says why not, before an image is read
    with Progress(quiet=quiet) as progress:
        for number, path in enumerate(images, 1):
            progress("classify", f"image {number} of {len(images)}")
            with taken() as devices:
                written = classify_image(
                    path, read, out, probabilities=probabilities, device=device, threads=threads, force=force
                )
            progress("classify", f"image {number} of {len(images)} computed on {in_words(devices)}")
            for one in written:
                click.echo(one)
