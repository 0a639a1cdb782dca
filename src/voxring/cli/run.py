"""``voxring party`` and ``voxring research``: a study between separate machines."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import ExitStack
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from voxring.cli.batch import Reading, batch_options, resumable
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

if TYPE_CHECKING:
    from voxring.study import Study
    from voxring.totals import LocalTotals


def _link_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--timeout",
            type=click.FloatRange(min=1),
            default=60.0,
            show_default=True,
            help="Seconds of silence allowed.",
        ),
        click.option(
            "--insecure",
            is_flag=True,
            help="For a study without keys: accept links that are not encrypted. Whoever can read them all learns "
            "every party's numbers.",
        ),
        click.option(
            "--key",
            type=click.Path(path_type=Path),
            help="This member's private key, made with `voxring keys new`. Links of a study with keys are sealed, and "
            "need it.",
        ),
        click.option(
            "--relay",
            metavar="tcp://HOST:PORT",
            help="Reach the other members through this relay instead of the study's; no party listens then.  "
            "[see `voxring relay --help`]",
        ),
        click.option("--quiet", is_flag=True, help="No progress on stderr."),
    ):
        command = option(command)
    return command


def number_of(given: str | None) -> Fraction | None:
    """Read a number of a budget, exactly as it is written."""
    try:
        number = None if given is None else Fraction(given)
    except (ValueError, ZeroDivisionError):
        raise click.BadParameter(f"expected a number such as 2.5, got {given!r}") from None
    if number is not None and number < 0:
        raise click.BadParameter(f"expected a number of 0 or more, got {given}")
    return number


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Which party of the study this is.")
@click.option("--manifest", type=click.Path(path_type=Path), required=True, help="CSV: image,ground_truth[,patient].")
@click.option("--address", help="Listen here instead of at the study's address, as tcp://HOST:PORT.")
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that keeps the coin of the study, from which its rings follow, the ledger of this party, and what it "
    "has computed so far; the same in every run.  [default: voxring in $XDG_STATE_HOME or ~/.local/state]",
)
@click.option("--approve", metavar="DIGEST", help="Approve the study as party approve does, by its digest.")
@click.option(
    "--allow-differencing",
    metavar="REASON",
    default="",
    help="Run although the difference from an earlier run tells the numbers of a few; the reason goes into the ledger.",
)
@click.option(
    "--budget",
    metavar="EPSILON",
    callback=lambda context, parameter, given: number_of(given),
    help="How much epsilon studies with differential privacy may spend of this hospital's patients, all runs in its "
    "ledger together; noted there, it holds for later runs, too, until another is given. Studies without are refused.",
)
@click.option(
    "--budget-delta",
    metavar="DELTA",
    default="1e-5",
    show_default=True,
    callback=lambda context, parameter, given: number_of(given),
    help="How much delta, beside --budget.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@batch_options
@_link_options
@click.option(
    "--status",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Show how far this party is at http://127.0.0.1:PORT/, with /status.json and Prometheus' /metrics; 0 takes a "
    "free port. Whoever has an account on this machine can look.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was learned as JSON.")
def party(
    study: Path,
    name: str,
    manifest: Path,
    address: str | None,
    state: Path | None,
    approve: str | None,
    allow_differencing: str,
    budget: Fraction | None,
    budget_delta: Fraction,
    device: str,
    workers: int,
    scheduler: str | None,
    bad: str | None,
    timeout: float,
    key: Path | None,
    relay: str | None,
    insecure: bool,
    quiet: bool,
    status: int | None,
    as_json: bool,
) -> None:
    """Take part in the study file STUDY as one of its parties.

    The images never leave this machine. Of the totals, what leaves is blinded; what comes back is the voxel count and
    the mean over all parties together. The study must have been approved: see voxring party approve --help.

    Images that are done are kept in a journal, with this party's own numbers, which never leaves the state folder: a
    run that was stopped, or killed, goes on where it was when the same command is given again.

    How far it is shows as a live table on a terminal; elsewhere as JSON, a line on stderr for each step, which names
    no file and no patient.
    """
    import msgspec

    from voxring.batch import read_manifest
    from voxring.devices import promise
    from voxring.net import PrivateKey
    from voxring.privacy import Budget
    from voxring.session import Account, InTwoPasses, Ledger, run_party, state_folder
    from voxring.session.account import check_party
    from voxring.study import load_study

    checked = load_study(study)
    check_party(checked, name)
    private = None if key is None else PrivateKey.read(key)
    read_manifest(manifest)
    if checked.evaluate is not None:
        from voxring.learn.evaluation import model_of

        model_of(checked)
    command = ["voxring", "party", "approve", str(study), "--name", name, *(["--state", str(state)] if state else [])]
    folder = state or state_folder()
    account = Account(
        Ledger(folder, name),
        checked,
        command=shlex.join(command),
        allow_differencing=allow_differencing,
    )
    if approve is not None:
        account.approve(approve, how="party --approve")
    account.check_approved()
    if budget is not None:
        account.set_budget(Budget(budget, budget_delta))
    account.check_budget()
    computes_on = promise(device)  # type: ignore[arg-type]  # click checks the choice
    with resumable(), Progress(quiet=quiet, as_json=True) as progress, ExitStack() as stack:
        if status is not None:
            from voxring.cli.status import StatusServer

            page = stack.enter_context(StatusServer(status, lambda: progress.snapshot(name)))
            progress(name, f"status at {page.url}")

        reading = Reading(manifest, name, device, workers, scheduler, bad, progress)

        def local_totals(study: Study) -> LocalTotals:
            batch = reading.kept(study, folder)
            return account.add_up(batch.patients, len(batch.skipped))

        def landmarks() -> LocalTotals:
            return account.add_up_landmarks(reading.kept(checked, folder).patients)

        progress(name, f"computes on {computes_on}")
        heard = run_party(
            checked,
            name,
            InTwoPasses(landmarks, local_totals) if checked.agrees else partial(local_totals, checked),
            step=None if checked.logistic is None else reading.again,
            state=folder,
            ledger=account,
            address=address,
            key=private,
            relay=relay,
            timeout=timeout,
            insecure=insecure,
            notify=lambda what: progress.phase(name, what),
            hears=lambda peer: progress.hears(name, peer),
        )
        progress(name, account.ledger.where())
    if as_json:
        means = {of: [str(mean.numerator), str(mean.denominator)] for of, mean in heard.means.items()}
        learned: dict[str, object] = {"voxels": heard.counts, "mean": means, "withheld": list(heard.withheld)}
        if heard.scale:
            learned["standard_scale"] = [[str(one.numerator), str(one.denominator)] for one in heard.scale]
        click.echo(msgspec.json.encode(learned).decode())
        return
    if heard.scale:
        click.echo(f"standard scale: {', '.join(f'{float(one):.6g}' for one in heard.scale)}")
    for of, mean in heard.means.items():
        click.echo(f"{of}: {heard.counts[of]:,} voxels in all, mean {float(mean):.6f}")
    for of in heard.withheld:
        click.echo(f"{of}: withheld")


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where to write the result, as JSON.")
@report_option
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="How often to start over when a party vanishes before anything was released; one that was started again is "
    "waited for.",
)
@_link_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def research(
    study: Path,
    out: Path,
    report: Path | None,
    retries: int,
    timeout: float,
    key: Path | None,
    relay: str | None,
    insecure: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run the study file STUDY as the researcher: dial its parties, sum round the ring, write the result."""
    from voxring.landmarks import landmarks_learned
    from voxring.learn.logistic import fitted_of
    from voxring.net import PrivateKey
    from voxring.result import Result
    from voxring.session import Course, run_researcher
    from voxring.study import load_study

    checked = load_study(study)
    private = None if key is None else PrivateKey.read(key)
    check_writable(out, study)
    page, course = report_path(out, report), Course()
    with Progress(quiet=quiet, as_json=True) as progress:
        for party in checked.parties:
            progress(party, "not connected yet")
        answer, view = run_researcher(
            checked,
            key=private,
            relay=relay,
            timeout=timeout,
            insecure=insecure,
            retries=retries,
            notify=lambda what: progress("researcher", what),
            # A party of `voxring party` answers for a study alone that its operator has approved.
            follow=lambda party, what: progress(party, what.replace("takes part", "has approved the study")),
            course=course,
        )
    skipped = {party: n for (what, party), n in view.learned.items() if what == "skipped" and isinstance(n, int)}
    fitted = fitted_of(view.learned, checked)
    result = Result.of(answer, checked, skipped, landmarks_learned(view.learned), fitted)
    result.save(out)
    write_report(result, course, page)
    if as_json:
        click.echo(out.read_text(encoding="utf-8"), nl=False)
    else:
        print_table(answer)
        print_statistics(result)
        print_noise(result.document)
        for party, number in skipped.items():
            click.echo(f"{party} left out {number} of its images, which cannot be used")
