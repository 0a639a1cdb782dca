"""``voxring scan``: make a manifest of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from voxring.cli.report import check_writable
from voxring.errors import StudyError
from voxring.result import write_whole

if TYPE_CHECKING:
    from voxring.scan import LeftOut

_SHOWN = 40  # lines of the table; --json has all


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("manifest.csv"),
    show_default=True,
    help="Where to write the manifest; its paths are relative to it. A file that is there is never written over.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that keeps the salt of patients' names.  [default: voxring in $XDG_STATE_HOME or ~/.local/state]",
)
@click.option("--image", default="*", help="Take only images whose path below FOLDER matches, as '*_T1w.nii.gz'.")
@click.option("--ground-truth", default="*", help="Take only ground truths whose path matches, as '*desc-aseg_dseg*'.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found and left out as JSON.")
def scan(folder: Path, out: Path, state: Path | None, image: str, ground_truth: str, as_json: bool) -> None:
    """Find images with their ground truths below FOLDER, and write a manifest of them.

    \b
    Finds
    - BIDS: anatomical images with derivatives _dseg, _mask or label-
    - DICOM: series, each alone in its folder or one file, with the SEG or
      RTSTRUCT that refers to them
    - CSV files with columns Image and Mask, and perhaps Patient
    - names: case1.nii.gz or case1_ct.nii.gz (or _t1, _pet …) with
      case1_seg.nii.gz (or _label, _mask, .seg); images/ beside labels/,
      imagesTr/ beside labelsTr/

    Only headers are read. What has no partner, or several, is listed on stderr with the reason, and is not in the
    manifest. Patients are told apart by Patient ID, sub-XX or the table's column; the manifest holds names made with a
    secret salt of this machine instead. Images that name no patient count as one together; where none does, each
    counts as a patient of its own.
    """
    import msgspec

    from voxring.scan import Pseudonyms, manifest
    from voxring.scan import scan as find
    from voxring.session.coins import state_folder

    check_writable(out)
    if out.exists():
        raise StudyError(f"{out}: exists, and a manifest is never written over: remove it, or choose another --out")
    found = find(folder, image=image, ground_truth=ground_truth)
    patients = {pair.patient.strip() for pair in found.pairs}
    if found.pairs:
        text = manifest(found, out, Pseudonyms.kept(state or state_folder()))
        write_whole(out, text.encode())
    if as_json:
        told = {
            "manifest": str(out) if found.pairs else None,
            "pairs": len(found.pairs),
            "patients": len(patients) if any(patients) else None,
            "left_out": [{"path": one.path, "reason": one.reason} for one in found.left_out],
        }
        click.echo(msgspec.json.encode(told).decode())
    else:
        _print_left_out(found.left_out)
    if not found.pairs:
        raise StudyError(f"{folder}: found no image with its ground truth: `voxring scan --help` says what is sought")
    if not as_json:
        counted = "1 patient" if len(patients) == 1 else f"{len(patients)} patients"
        who = f"of {counted}" if any(patients) else "each of a patient of its own, since none is named"
        what = "1 image" if len(found.pairs) == 1 else f"{len(found.pairs)} images"
        click.echo(f"{out}: {what} with ground truth, {who}")
    if "" in patients and len(patients) > 1:
        count = sum(not pair.patient.strip() for pair in found.pairs)
        names = "1 image names" if count == 1 else f"{count} images name"
        click.echo(f"{names} no patient: all such count as one patient together", err=True)


def _print_left_out(left_out: Sequence[LeftOut]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not left_out:
        return
    table = Table(box=SIMPLE_HEAD)
    table.add_column("left out", overflow="fold")
    table.add_column("reason", overflow="fold")
    for one in left_out[:_SHOWN]:
        table.add_row(Text(one.path), Text(one.reason))
    console = Console(stderr=True, highlight=False)
    console.print(table)
    if len(left_out) > _SHOWN:
        console.print(f"and {len(left_out) - _SHOWN} more: --json lists all")
