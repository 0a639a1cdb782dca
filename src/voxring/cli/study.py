"""``voxring study``: look at a study before anything is computed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import click
import msgspec

from voxring.cli.report import check_writable
from voxring.cli.sheet import FORMATS
from voxring.result import write_whole
from voxring.ring.disclosure import disclosure
from voxring.ring.sheet import additive_warnings, logistic_warnings, moduli, sheet
from voxring.statistics import layout
from voxring.study import Study, load_study


@click.group()
def study() -> None:
    """Check a study file, and say who would learn what."""


@study.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(file: Path, as_json: bool) -> None:
    """Check the study FILE and say what it computes, with what numbers, and who learns what."""
    checked = load_study(file)
    sizes = {name: modulus.bit_length() - 1 for name, (_, modulus) in moduli(checked).items()}
    warnings = list(_warnings(checked))
    blocks = {block.name: block.size for block in layout(checked)}
    if as_json:
        click.echo(
            msgspec.json.encode(
                {
                    "study": checked.name,
                    "digest": checked.digest,
                    "parties": checked.parties,
                    "denominator": str(checked.denominator),
                    "modulus_bits": sizes,
                    "features": [feature.label for feature in checked.feature],
                    "statistics": blocks,
                    "warnings": warnings,
                    "disclosure": disclosure(checked),
                }
            ).decode()
        )
        return
    click.echo(f"study    {checked.name}")
    click.echo(f"digest   {checked.digest}")
    click.echo(f"parties  {', '.join(checked.parties) or 'none named; simulate takes them from --party'}")
    links = "sealed, with the keys of all members" if checked.keys else "in the clear: no keys"
    click.echo(f"links    {links}{f', through {checked.relay}' if checked.relay else ''}")
    click.echo(f"classes  {', '.join(f'{name} = {label}' for name, label in checked.classes.items())}")
    click.echo(f"sums     integers over {checked.denominator}")
    click.echo(f"moduli   {', '.join(f'{name} {bits} bits' for name, bits in sizes.items())}")
    if checked.feature:
        click.echo(f"features {', '.join(feature.label for feature in checked.feature)}")
    if blocks:
        size = -(-sum(blocks.values()) * sizes["statistics"] // 8 // 1000)
        listed = ", ".join(f"{name} {count}" for name, count in blocks.items())
        click.echo(f"vector   {sum(blocks.values())} numbers of each class, {size} kB: {listed}")
    if checked.logistic is not None:
        click.echo(f"steps    at most {checked.logistic.steps} of a logistic regression, each a pass and a sum")
    for warning in warnings:
        click.echo(f"warning  {warning}")
    click.echo("\nWho learns what")
    for sentence in disclosure(checked):
        click.echo(f"- {sentence}")


@study.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(list(FORMATS)), default="md", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write here instead of to stdout.")
def disclose(file: Path, form: str, out: Path | None) -> None:
    """Write the disclosure sheet of the study FILE: every message, and who learns what from it, also by collusion.

    The sheet is for those who decide whether a hospital may take part. It is made from the study alone, is the same for
    all who make it, and bears the study's digest.
    """
    checked = load_study(file)
    text = FORMATS[form](sheet(checked))
    if out is None:
        click.echo(text, nl=False)
        return
    check_writable(out, file)
    write_whole(out, text.encode())


def _warnings(checked: Study) -> list[str]:
    found = []
    options = checked.standardise
    if options.method == "rescale" and options.range:
        step = Fraction(checked.unit) / (Fraction(repr(options.range[1])) - Fraction(repr(options.range[0])))
        error = abs(round(step) - step) / step
        if error > Fraction(1, 1000):
            enough = options.fraction_bits
            while abs(round(step) - step) / step > Fraction(1, 10_000):
                enough, step = enough + 1, step * 2
            found.append(
                f"standardise: with fraction_bits = {options.fraction_bits} a step of the image is rounded by "
                f"{float(error):.1%}, the same for all parties; fraction_bits = {enough} brings that below 0.01%"
            )
    if checked.blurs_axes:
        found.append(
            "window: images with 2 and with 3 axes are taken alike, by parties and by a model, and features mean "
            "another thing in each: write axes = 3 for volumes, axes = 2 for planes"
        )
    if checked.privacy.min_voxels <= 2 and checked.privacy.min_patients <= 1:
        found.append(
            "privacy: min_voxels and min_patients are at their least: a class that one patient alone has is released"
        )
    found += [f"statistics: {warning}" for warning in additive_warnings(checked)]
    found += [f"logistic: {warning}" for warning in logistic_warnings(checked)]
    return found
