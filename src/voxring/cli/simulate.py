"""``voxring simulate``: a whole study on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from voxring.cli.progress import Progress
from voxring.cli.report import (
    check_writable,
    print_noise,
    print_statistics,
    print_table,
    report_option,
    report_path,
    write_report,
)


def manifests_of(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, Path]:
    """Split NAME=MANIFEST options."""
    manifests: dict[str, Path] = {}
    for option in given:
        name, equals, path = option.partition("=")
        if not (name and equals and path):
            raise click.BadParameter(f"expected NAME=MANIFEST, got {option!r}")
        if name in manifests:
            raise click.BadParameter(f"party {name!r} is given twice")
        manifests[name] = Path(path)
    return manifests


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option(
    "--party",
    "manifests",
    multiple=True,
    required=True,
    callback=manifests_of,
    metavar="NAME=MANIFEST",
    help="A party and its manifest; at least three.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where to write the result, as JSON.")
@report_option
@click.option("--pooled", is_flag=True, help="Also compute the answer in the open and say whether they are equal.")
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=60.0, show_default=True, help="Seconds of silence allowed."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def simulate(
    study: Path,
    manifests: dict[str, Path],
    out: Path,
    report: Path | None,
    pooled: bool,
    timeout: float,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run the study file STUDY with every party as a process of its own, over real sockets on 127.0.0.1.

    A study without [[party]] tables takes its parties from the --party options.
    """
    from voxring import simulation
    from voxring.errors import StudyError
    from voxring.study import load_study

    checked = simulation.with_parties(load_study(study), list(manifests))
    if pooled and checked.differential_privacy is not None:
        raise StudyError("--pooled: the results of a study with differential privacy are noisy: leave it out")
    check_writable(out, study)
    page = report_path(out, report)
    with Progress(quiet=quiet, as_json=True) as progress:
        run = simulation.simulate(checked, manifests, timeout=timeout, notify=progress)
        equal = None
        if pooled:
            progress("pooled", "computing the same in the open")
            equal = simulation.pooled_result(checked, manifests).document == run.document
            progress("pooled", "done")
    run.save(out)
    write_report(run, run.course, page)
    if as_json:
        click.echo(out.read_text(encoding="utf-8"), nl=False)
    else:
        print_table(run.answer)
        print_statistics(run)
        print_noise(run.document)
    if equal is not None:
        click.echo(f"equal to pooled, bit for bit: {'yes' if equal else 'NO'}", err=as_json)
    return 1 if equal is False else 0
