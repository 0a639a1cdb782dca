"""The command ``voxring``. Commands are imported when they run: ``voxring --help`` must feel instant."""

from __future__ import annotations

import sys
from importlib import import_module

import click

# name: (module, attribute, one line of help); the line stands here so that help imports nothing.
_COMMANDS = {
    "classify": ("classify", "classify", "Give every voxel of new images a class, with a trained model."),
    "demo": ("demo", "demo", "Three hospitals on this machine compute the statistics of a real CT."),
    "evaluate": ("evaluate", "evaluate", "Count how a model's classes meet a ground truth: Dice, ROC, calibration."),
    "keys": ("keys", "keys", "Make a member's key, and show its fingerprint."),
    "ledger": ("ledger", "ledger", "Look at what a party approved, took part in and sent; check that it is whole."),
    "party": ("party", "party", "Approve a study, and take part in it, as one hospital."),
    "preflight": ("preflight", "preflight", "Say what would stop a party, before the study's day."),
    "relay": ("relay", "relay", "Let members meet who can only dial out."),
    "report": ("local", "report", "Show a hospital its own images: patient data, for the hospital alone."),
    "research": ("run", "research", "Run a study as the researcher and write the result."),
    "scan": ("scan", "scan", "Make a manifest of a folder's images and ground truths."),
    "simulate": ("simulate", "simulate", "Run a whole study on this machine, each party a process of its own."),
    "study": ("study", "study", "Check a study file, and say who would learn what."),
    "train": ("train", "train", "Make a classifier from the sums in a result."),
    "warm": ("warm", "warm", "Compile the kernels ahead, for batch jobs and containers."),
}

EXIT_CODES = """\b
Exit codes:
  0    done
  1    an unexpected failure, or the ring's answer differs from the pooled one
  2    wrong usage of the command
  3    the study, a manifest, a result or a model is wrong, the study is not approved, or a ledger is broken or does
       not allow the run
  4    an image, a ground truth or a device is wrong, or a value leaves the study's bounds
  5    a peer did not answer, went away or ended the study
  6    a message broke the protocol
  130  interrupted (Ctrl-C)
  143  terminated (SIGTERM)
"""


class _Commands(click.Group):
    """A group that imports a command only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command = getattr(import_module(f"voxring.cli.{module}"), attribute)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in sorted(_COMMANDS.items())])


@click.group(cls=_Commands, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="voxring", message="voxring %(version)s")
def voxring() -> None:
    """Exact statistics over many hospitals' labelled images; no image and no hospital's own number leaves its walls."""


def main() -> None:
    """Run the command and end with its documented exit code."""
    from voxring.cli.signals import catch_sigterm, exit_code
    from voxring.errors import VoxringError

    catch_sigterm()
    try:
        code = voxring(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort as abort:
        click.echo("voxring: interrupted; nothing was written", err=True)
        sys.exit(exit_code(abort.__cause__))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except VoxringError as error:
        click.echo(f"voxring: {error}", err=True)
        sys.exit(error.exit_code)
