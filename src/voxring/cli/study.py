"""``voxring study``: look at a study before anything is computed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import click
import msgspec

from voxring.fixedpoint import modulus
from voxring.ring.disclosure import disclosure
from voxring.study import Study, load_study
from voxring.totals import count_bound, sdsum_bound, sum_bound


@click.group()
def study() -> None:
    """Check a study file."""


@study.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(file: Path, as_json: bool) -> None:
    """Check the study FILE and say what it computes, with what numbers, and who learns what."""
    checked = load_study(file)
    sizes = _modulus_bits(checked)
    warnings = list(_warnings(checked))
    if as_json:
        click.echo(
            msgspec.json.encode(
                {
                    "study": checked.name,
                    "digest": checked.digest,
                    "parties": checked.parties,
                    "denominator": str(checked.denominator),
                    "modulus_bits": sizes,
                    "warnings": warnings,
                    "disclosure": disclosure(checked),
                }
            ).decode()
        )
        return
    click.echo(f"study    {checked.name}")
    click.echo(f"digest   {checked.digest}")
    click.echo(f"parties  {', '.join(checked.parties) or 'none named; simulate takes them from --party'}")
    click.echo(f"classes  {', '.join(f'{name} = {label}' for name, label in checked.classes.items())}")
    click.echo(f"sums     integers over {checked.denominator}")
    click.echo(f"moduli   {', '.join(f'{name} {bits} bits' for name, bits in sizes.items())}")
    for warning in warnings:
        click.echo(f"warning  {warning}")
    click.echo("\nWho learns what")
    for sentence in disclosure(checked):
        click.echo(f"- {sentence}")


def _modulus_bits(checked: Study) -> dict[str, int]:
    """Bits of N of the three sums; that of sdsum depends on μ, and is that of the largest denominator μ can have."""
    parties = len(checked.party) or checked.privacy.min_parties
    largest = Fraction(1, checked.denominator * count_bound(checked) * parties)
    bounds = {"voxels": count_bound(checked), "sum": sum_bound(checked), "sdsum": sdsum_bound(checked, largest)}
    return {name: modulus(parties, bound).bit_length() for name, bound in bounds.items()}


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
    if checked.privacy.min_voxels <= 2 and checked.privacy.min_patients <= 1:
        found.append(
            "privacy: min_voxels and min_patients are at their least: a class that one patient alone has is released"
        )
    return found
