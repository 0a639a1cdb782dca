"""``voxring ledger``: look at a party's ledger."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from voxring.session.ledger import Entry, Ledger


@click.group()
def ledger() -> None:
    """Look at the ledger of a party: what it approved, took part in and sent."""


def _which(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--name", help="Whose ledger; may be left out when the folder holds one only."),
        click.option(
            "--state",
            type=click.Path(path_type=Path, file_okay=False),
            help="Folder that keeps it.  [default: voxring in $XDG_STATE_HOME or ~/.local/state]",
        ),
    ):
        command = option(command)
    return command


@ledger.command()
@_which
@click.option("--json", "as_json", is_flag=True, help="Print all that every entry holds, as JSON.")
def show(name: str | None, state: Path | None, as_json: bool) -> None:
    """Show the entries, and what is spent under differential privacy. They are not checked: that is what verify is for.

    Spent is the sum over all sessions in which this party gave a share: of epsilon, and of delta.
    """
    import msgspec

    entries = _open(name, state).entries()
    if as_json:
        rows = [msgspec.to_builtins(entry) | {"content": _content(entry)} for entry in entries]
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    table.add_column("", justify="right")
    for title in ("time (UTC)", "kind", "what"):
        table.add_column(title)
    for entry in entries:
        table.add_row(str(entry.sequence), entry.time[:19].replace("T", " "), entry.kind, _summary(entry))
    Console(highlight=False, markup=False).print(table)
    for line in _budget(entries):
        click.echo(line)


@ledger.command()
@_which
@click.option("--head", metavar="HASH", help="A head noted earlier: fail if the ledger does not go on from it.")
def verify(name: str | None, state: Path | None, head: str | None) -> None:
    """Check the chain from the first entry to the last, and print the head, the hash of the last.

    Any change, and any entry that is missing, put in or moved, breaks the chain; the first that does not fit is named.
    That the last entries were cut off, or that the whole chain was made anew, cannot be seen in the file alone: note
    the head where others cannot change it, and give it as --head the next time.
    """
    from voxring.errors import StudyError

    noted = None if head is None else head.strip().lower()
    if noted is not None and not re.fullmatch("[0-9a-f]{64}", noted):
        raise StudyError(
            "--head: expected the 64 digits of a head, as verify prints them, got another text: copy it whole"
        )
    kept = _open(name, state)
    entries = kept.verified()
    if noted is not None and noted not in {entry.hash for entry in entries}:
        raise StudyError(
            f"{kept.path}: no entry has the hash that was noted: entries were cut off or the chain was made anew: put "
            "the ledger back from a backup"
        )
    click.echo(f"whole: {kept.where()}")


def _open(name: str | None, state: Path | None) -> Ledger:
    from voxring.errors import StudyError
    from voxring.session.coins import state_folder
    from voxring.session.ledger import Ledger, parties_with_ledger

    folder = state or state_folder()
    if name is None:
        names = parties_with_ledger(folder)
        if len(names) != 1:
            found = f"found those of {', '.join(names)}: say which with --name" if names else "found none: give --state"
            raise StudyError(f"{folder}: expected the ledger of one party, {found}")
        (name,) = names
    return Ledger(folder, name)


def _budget(entries: list[Entry]) -> list[str]:
    """Say what is spent, where a study had differential privacy, or a budget is set."""
    from voxring.errors import StudyError
    from voxring.session.account import budget_of, exact_runs, spent

    try:
        used, may, exact = spent(entries), budget_of(entries), exact_runs(entries)
    except StudyError as error:
        return [f"spent: not known: {error}"]
    if not used.epsilon and may is None:
        return []
    lines = [f"spent: {used}{'' if may is None else f' of {may}'}"]
    if exact:
        lines.append(
            f"beside, {exact} session{'s' * (exact > 1)} of studies without noise, for which no ε tells anything"
        )
    return lines


def _content(entry: Entry) -> Any:
    """Return what an entry holds; text that is no JSON, as after tampering, as it is."""
    import msgspec

    try:
        return msgspec.json.decode(entry.content)
    except msgspec.DecodeError:
        return entry.content


def _summary(entry: Entry) -> str:
    content = _content(entry)
    if not isinstance(content, dict):
        return "not what an entry of this kind holds"
    fields = {key: content[key] for key in _SHOWN if content.get(key)}
    for key in ("session", "digest", "sheet"):
        if key in fields:
            fields[key] = str(fields[key])[:12]
    if isinstance(content.get("brought"), dict):
        fields["classes"] = list(content["brought"].get("classes", ()))
    if isinstance(content.get("sent"), list):
        fields["sent"] = f"{sum(row[-1] for row in content['sent'])} messages"
    return ", ".join(f"{key} {_plain(value)}" for key, value in fields.items())


_SHOWN = (  # in this order
    *("party", "study", "digest", "participants", "session", "protocol", "how", "sheet"),
    *("epsilon", "delta", "spends", "skipped", "phase", "n", "outcome", "reason", "given", "overruled"),
)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={one}" for key, one in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
