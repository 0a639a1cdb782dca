"""``voxring party``: approve a study and take part in it."""

from __future__ import annotations

from pathlib import Path

import click

from voxring.cli.run import party as run


class _RunByDefault(click.Group):
    """A group whose command ``run`` need not be named: ``voxring party STUDY …`` is ``voxring party run STUDY …``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = args and (args[0] in self.commands or args[0] in self.get_help_option_names(ctx))
        return super().parse_args(ctx, args if named else ["run", *args])

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[run] STUDY --name NAME --manifest FILE [OPTIONS]")
        formatter.write_usage(ctx.command_path, "approve STUDY [OPTIONS]")


@click.group(cls=_RunByDefault)
def party() -> None:
    """Take part in the study file STUDY as one of its parties, after this party's operator has approved it.

    The word run may be left out. See voxring party run --help and voxring party approve --help for the options.
    """


party.add_command(run, "run")  # under its own name it is what ``voxring party`` falls through to


@party.command(short_help="Show who would learn what from a study, and approve it.")
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--name", help="Which party of the study this is; may be left out when one of them has a ledger here.")
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that keeps the ledger.  [default: voxring in $XDG_STATE_HOME or ~/.local/state]",
)
@click.option("--yes", metavar="DIGEST", help="Approve the study of this digest without asking, for scripts.")
def approve(study: Path, name: str | None, state: Path | None, yes: str | None) -> None:
    """Show who would learn what from the study file STUDY, and approve it for this party by its digest.

    The approval is for the file as it is: a changed study has another digest, and must be approved anew. It is written
    into the party's ledger, with a hash of the disclosure sheet.
    """
    from voxring.cli.sheet import FORMATS
    from voxring.errors import StudyError
    from voxring.ring.sheet import sheet
    from voxring.session.account import DIGITS, Account, check_party, party_of
    from voxring.session.coins import state_folder
    from voxring.session.ledger import Ledger
    from voxring.study import load_study

    checked = load_study(study)
    folder = state or state_folder()
    if name is None:
        name = party_of(checked, folder)
    check_party(checked, name)
    shown = FORMATS["md"](sheet(checked))
    click.echo(shown)
    click.echo(f"digest of the study: {checked.digest}")
    given = yes
    if given is None:
        asked = f"To approve it for {name}, type at least the first {DIGITS} digits of the digest"
        try:
            given = click.prompt(asked, err=True)
        except click.Abort as abort:
            if not isinstance(abort.__context__, EOFError):
                raise
            raise StudyError(
                "expected the digest to be typed, got the end of the input: nothing was approved: "
                "where nobody types, give --yes DIGEST"
            ) from None
    account = Account(Ledger(folder, name), checked)
    account.approve(given, how="party approve --yes" if yes else "party approve", sheet=shown)
    click.echo(f"approved for {name}; {account.ledger.where()}")
