"""``voxring relay``: where members meet who can only dial out."""

from __future__ import annotations

import threading
from contextlib import suppress

import click


@click.command()
@click.option(
    "--listen",
    required=True,
    metavar="tcp://HOST:PORT",
    help="Where members connect. HOST is an address of this machine, 0.0.0.0 for all of them.",
)
def relay(listen: str) -> None:
    """Let members meet who can only dial out: hospitals whose firewalls let no connection in.

    The parties and the researcher of a study connect here, and no party listens anywhere. The study's file says
    relay = "tcp://HOST:PORT", or every `voxring party` and `voxring research` gets it as --relay. The study must have
    keys (`voxring keys --help`), and the clocks of its members must be right within two hours. One relay serves many
    studies at once; it needs no study, no key, no disk and no settings, and may run anywhere all members can reach.

    \b
    What it sees: network addresses, who asks whom under names that change
      every day, and when, how many and how long messages are.
    What it can do if it is up to no good: lose or hold back messages, which
      ends a session with an error. It can read and change none, so no number
      leaks and none comes out wrong.
    What it holds: at most 256 connections, a MiB on its way to each, and 128
      mailboxes of half a MiB; half of all that for one network address, and
      beyond, it refuses. That is some 400 MB when everything is full, and
      next to nothing in a usual session.

    It writes nothing down, and runs until it is ended with Ctrl-C or a signal.
    """
    from voxring.net.address import check_address
    from voxring.net.relay import Relay

    with Relay(check_address("--listen", listen, sealed=True, insecure=True)) as serving, suppress(KeyboardInterrupt):
        click.echo(f"relay at {serving.address}")
        threading.Event().wait()
