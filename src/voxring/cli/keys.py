"""``voxring keys``: who the members of a study are."""

from __future__ import annotations

from pathlib import Path

import click

from voxring.errors import StudyError


@click.group()
def keys() -> None:
    """Make a member's key, and show its fingerprint.

    \b
    To seal the links of a study:
    1. Every party and the researcher runs `voxring keys new FILE` on the
       machine where it will take part. FILE stays there and is shown to
       nobody; the public key, one line, goes to whoever writes the study.
    2. The study gets each party's line in its [[party]] table, and the
       researcher's in a table [researcher]. All of them, or none.
    3. Everybody runs `voxring keys show study.toml`, calls the others, and
       compares fingerprints. Nothing else tells a member from somebody who
       changed the study on its way.
    4. `voxring party` and `voxring research` take the file as --key FILE.

    A key may serve in any number of studies. When one is lost, or somebody may have read it, make another and change
    the study; what was recorded of earlier sessions stays closed.
    """


@keys.command()
@click.argument("file", type=click.Path(path_type=Path))
def new(file: Path) -> None:
    """Make a private key in the new file FILE, and print what goes into the study.

    FILE can be read by its owner alone, and is never written over.
    """
    from voxring.net.keys import PrivateKey

    if file.suffix == ".toml":
        raise StudyError(f"{file}: expected a name for a key, got that of a study: choose another ending than .toml")
    key = PrivateKey.new()
    key.write(file)
    _print(key.public)
    click.echo(f"\n{file} is private: it stays on this machine. The line above goes into the study.", err=True)


@keys.command()
@click.argument("file", metavar="FILE_OR_STUDY", type=click.Path(path_type=Path))
def show(file: Path) -> None:
    """Print the public key and the fingerprint of a key file, or of every member of a study (a file named *.toml).

    A fingerprint is 30 digits of the key's SHA-256, to be read over the telephone.
    """
    from voxring.net.keys import PrivateKey, fingerprint
    from voxring.study import load_study

    if file.suffix != ".toml":
        _print(PrivateKey.read(file).public)
        return
    members = load_study(file).keys
    if not members:
        raise StudyError(f"{file}: the study has no keys: `voxring keys --help` says how it gets them")
    width = max(map(len, members))
    for name, public in members.items():
        click.echo(f"{name:<{width}}  {public}  {fingerprint(public)}")


def _print(public: str) -> None:
    from voxring.net.keys import fingerprint

    click.echo(f'key = "{public}"')
    click.echo(f"fingerprint {fingerprint(public)}")
