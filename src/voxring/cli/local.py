"""``voxring report``: a page of a hospital's own images, for that hospital."""

from __future__ import annotations

from pathlib import Path

import click

from voxring.cli.progress import Progress
from voxring.cli.report import check_writable
from voxring.result import write_whole


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--local", is_flag=True, required=True, help="Say that you know: the page shows patients.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where to write the page, as HTML.")
@click.option(
    "--images",
    type=click.IntRange(min=1, max=500),
    default=20,
    show_default=True,
    help="So many images at most, the first of the manifest.",
)
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def report(study: Path, manifest: Path, local: bool, out: Path, images: int, quiet: bool) -> None:
    """Show a hospital its own images of MANIFEST as the study file STUDY sees them, in one HTML page.

    For each image: ground truth over the plane that has the most of it, the local means there, and a histogram of each
    class. The page holds patient data and must not leave the hospital. Only its owner may read the file; nothing is
    sent.
    """
    from voxring.report.local import local_report
    from voxring.study import load_study

    checked = load_study(study)
    check_writable(out)
    with Progress(quiet=quiet) as progress:
        page = local_report(checked, manifest, most=images, progress=progress)
    write_whole(out, page.encode(), private=True)
    click.echo(f"{out}: patient data; it must not leave this hospital", err=True)
