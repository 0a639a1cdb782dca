"""``voxring demo``: the whole thing on one machine, on a real CT."""

from __future__ import annotations

import csv
import tempfile
import time
from contextlib import nullcontext
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from voxring.cli.progress import Progress
from voxring.cli.report import check_writable, print_table, report_option, report_path, write_report
from voxring.cli.simulate import manifests_of
from voxring.errors import StudyError

if TYPE_CHECKING:
    from voxring.images import GroundTruth, Image
    from voxring.study import Study

_HOSPITALS = ("north", "centre", "south")
_COLLUSION = """
Each number alone is uniform. The messages of one sum look alike, because values are small against N: two neighbours
of a hospital that put theirs side by side would learn its value. That is collusion of two; the study allows one."""


@click.command()
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the study, the hospitals' images and manifests, and the result in this folder.",
)
@click.option("--train", is_flag=True, help="Is more data better? Train a classifier alone and together; see below.")
@click.option("--classifier", type=click.Choice(["lda", "qda", "gnb"]), default="qda", show_default=True)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="With --train: draw the Dice, as SVG.")
@click.option(
    "--data",
    "manifests",
    multiple=True,
    callback=manifests_of,
    metavar="NAME=MANIFEST",
    help="With --train: your own images instead of made-up ones, a manifest for each hospital; at least three.",
)
@click.option("--held-out", type=click.Path(path_type=Path), help="With --data: a manifest of images to be classified.")
@click.option("--study", type=click.Path(path_type=Path), help="With --data: a study with features and gram = true.")
@report_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def demo(
    keep: Path | None,
    train: bool,
    classifier: str,
    plot: Path | None,
    manifests: dict[str, Path],
    held_out: Path | None,
    study: Path | None,
    report: Path | None,
    as_json: bool,
) -> int:
    """Three hospitals compute the exact mean and deviation of a real CT's seven tissues, together.

    The CT (slicerio's CTChest4, with its segmentation) is cut into three parts along the body. Each part belongs to a
    hospital: a process of its own that talks to the others over sockets and shows nobody a number.

    With --train, five hospitals with two made-up patients each train a classifier of lesions: each on its own patients,
    and all together from a secure sum. Each classifies ten patients that none was trained on, and the Dice of all are
    set side by side. Your own images take the place of the made-up ones with --data, --held-out and --study.
    """
    given = [manifests, held_out, study]
    if any(given) and not (train and all(given)):
        raise click.UsageError("--data, --held-out and --study go together, and with --train")
    if plot is not None:
        if not train:
            raise click.UsageError("--plot goes with --train")
        check_writable(plot)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    with nullcontext(keep) if keep else tempfile.TemporaryDirectory(prefix="voxring-demo-") as folder:
        if not train:
            return _demo(Path(folder), report, as_json)
        from voxring.cli import demo_train
        from voxring.study import load_study

        checked = None if study is None else load_study(study)
        return demo_train.run(Path(folder), classifier, checked, manifests, held_out, plot, report, as_json)


def _demo(folder: Path, report: Path | None, as_json: bool) -> int:
    from voxring import simulation

    page = report_path(folder / "result.json", report)
    start = time.monotonic()
    with Progress() as progress:
        progress("demo", "reading the CT")
        study, manifests = make_demo(folder)
        progress("demo", "compiling the kernels (kept for later runs)")
        _warm(folder, study)
        progress("demo", "three hospitals and a researcher, each in a process of its own")
        run = simulation.simulate(study, manifests, notify=progress)
        progress("demo", "computing the same in the open, to compare")
        equal = simulation.pooled_result(study, manifests).document == run.document
        progress("demo", f"done in {time.monotonic() - start:.1f} s")
    run.save(folder / "result.json")
    write_report(run, run.course, page)
    if as_json:
        click.echo((folder / "result.json").read_text(encoding="utf-8"), nl=False)
    else:
        print_table(run.answer)
    click.echo(f"equal to pooled, bit for bit: {'yes' if equal else 'NO'}", err=as_json)
    from voxring.ring.views import describe

    click.echo("\nWhat each saw of the others", err=as_json)
    for name, heard in run.parties.items():
        click.echo(f"  {name:<11}{describe(heard.view)}", err=as_json)
    click.echo(f"  {'researcher':<11}{describe(run.researcher)}", err=as_json)
    click.echo(_COLLUSION, err=as_json)
    return 0 if equal else 1


def make_demo(folder: Path) -> tuple[Study, dict[str, Path]]:
    """Write the study, and each hospital's part of the CT with its manifest, into a folder.

    Raises
    ------
    StudyError
        slicerio, which ships the CT, is not installed.
    """
    from voxring.images import read_ground_truth, read_image
    from voxring.study import load_study

    try:
        data = resources.files("slicerio") / "data"
    except ModuleNotFoundError:
        raise StudyError(
            "the demo's CT comes with slicerio, which is not installed: pip install 'voxring[demo]'"
        ) from None
    image = read_image(Path(str(data / "CTChest4.nrrd")))
    ground_truth = read_ground_truth(Path(str(data / "Segmentation.seg.nrrd")))
    (folder / "study.toml").write_text(_study_toml(ground_truth), encoding="utf-8")
    manifests = {}
    planes = image.voxels.shape[0]
    for i, hospital in enumerate(_HOSPITALS):
        part = slice(i * planes // len(_HOSPITALS), (i + 1) * planes // len(_HOSPITALS))
        manifests[hospital] = _write_hospital(folder / hospital, image, ground_truth, part)
    return load_study(folder / "study.toml"), manifests


def _study_toml(ground_truth: GroundTruth) -> str:
    classes = ", ".join(f'"{segment.name}" = {segment.label}' for segment in ground_truth.segments)
    return (
        f'name = "seven tissues of a chest CT"\nclasses = {{ {classes} }}\n\n'
        '[window]\nsize = 7\nborder = "reflect"\n\n[privacy]\nmin_voxels = 50\n'
    )


def _write_hospital(folder: Path, image: Image, ground_truth: GroundTruth, part: slice) -> Path:
    import nrrd

    folder.mkdir(parents=True, exist_ok=True)
    header = _geometry(image, part.start)
    for name, voxels in (("ct", image.voxels), ("ground_truth", ground_truth.layers[0])):
        nrrd.write(str(folder / f"{name}.nrrd"), voxels[part], header, index_order="C")
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "ground_truth"), ("ct.nrrd", "ground_truth.nrrd")])
    return manifest


def _geometry(image: Image, first_plane: int) -> dict[str, Any]:
    """NRRD header fields of the grid that starts at a later plane."""
    affine = image.grid.affine
    if affine is None:
        return {}
    return {
        "space": "right-anterior-superior",
        "space directions": affine[:3, :3].T,
        "space origin": affine[:3, 3] + first_plane * affine[:3, 2],
    }


def _warm(folder: Path, study: Study) -> None:
    """Compile for the types of the demo, so that the hospitals' processes find the code in the cache."""
    from voxring.batch import image_totals, read_manifest

    image_totals(read_manifest(folder / _HOSPITALS[0] / "manifest.csv")[0], study)
