"""``voxring preflight``: what would stop a party, said before the study's day.

A finding has two texts. ``words`` names no image, no ground truth, no patient and no number of the hospital's own, and
may go into any log. ``private`` may, and is shown on the operator's own terminal alone, or where ``--names`` asks for
it.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import click

from voxring.errors import DeviceError, ImageError, ModelError, PeerError, StudyError, VoxringError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from voxring.batch import Row
    from voxring.images import ImageFile
    from voxring.study import Study

    Array = npt.NDArray[np.integer]

State = Literal["ok", "note", "wrong"]

MIB = 1 << 20
LEAST_FREE = 64 * MIB
"""Bytes that must be free for the journal and the ledger, which take about a kilobyte for each image."""
WORKER_BYTES = 300 * MIB
"""Of a worker without any volume: the interpreter, numba, its machine code."""
_PIECE = 1 << 16
_AT_ONCE = 64
"""Bytes a voxel of the pieces in which images of more than 16 bits are looked through: `_PIECE` voxels, or a plane."""
REACH_SECONDS = 3.0
_TIMEX_BYTES = 512  # more than struct timex of any Linux
_TIME_ERROR = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. ``code`` is the exit code of what is wrong."""

    check: str
    state: State
    words: str
    private: str = ""
    code: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be checked: the options of ``voxring party``, before any of them is trusted."""

    study: Study
    name: str
    manifest: Path
    key: Path | None
    state: Path
    device: str
    workers: int
    address: str | None
    relay: str | None
    insecure: bool
    whole: bool


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Which party of the study this is.")
@click.option("--manifest", type=click.Path(path_type=Path), required=True, help="CSV: image,ground_truth[,patient].")
@click.option("--key", type=click.Path(path_type=Path), help="This party's private key.")
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that keeps coin, ledger and journal.  [default: voxring in $XDG_STATE_HOME or ~/.local/state]",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=lambda: min(4, len(os.sched_getaffinity(0))),
    show_default="one a processor, 4 at most",
    help="Processes, or with a GPU threads, that will read and compute: memory is needed for each.",
)
@click.option("--address", help="Where the party will listen, instead of the study's address.")
@click.option("--relay", metavar="tcp://HOST:PORT", help="The relay, instead of the study's.")
@click.option("--insecure", is_flag=True, help="The study has no keys, and its links may be in the clear.")
@click.option("--whole", is_flag=True, help="Read every image to its end, and compare its checksum if it has one.")
@click.option(
    "--names/--no-names",
    default=None,
    help="Name files, lines and this party's own counts.  [default: on a terminal alone, so that no log holds them]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a check.")
def preflight(
    study: Path,
    name: str,
    manifest: Path,
    key: Path | None,
    state: Path | None,
    device: str,
    workers: int,
    address: str | None,
    relay: str | None,
    insecure: bool,
    whole: bool,
    names: bool | None,
    as_json: bool,
) -> int:
    """Say what would stop `voxring party` with the same options, and how to mend it, before the study's day.

    Prints a line for each check: ok, note (look at it; it need not stop anything) or WRONG, with what to do. Ends with
    0 when nothing is wrong, else with the exit code that the party would have ended with.

    Reads the headers of all images and all ground truths. The party itself reads no more of an image than it needs,
    often not to the checksum at the end of a compressed one: damage that still unpacks is found with --whole alone,
    which takes as long as to unpack them all. Nothing is sent: other machines see connections that open and close.
    """
    from voxring.session.account import check_party
    from voxring.session.coins import state_folder
    from voxring.study import load_study

    checked = load_study(study)
    check_party(checked, name)
    plan = Plan(checked, name, manifest, key, state or state_folder(), device, workers, address, relay, insecure, whole)
    shown = sys.stdout.isatty() if names is None else names
    code = wrong = 0
    for finding in findings(plan, _approve(study, name, state)):
        if finding.state == "wrong":
            wrong += 1
            code = code or finding.code
        _print(finding, private=shown, as_json=as_json)
    if not as_json:
        what = "nothing is wrong" if not wrong else "1 check is wrong" if wrong == 1 else f"{wrong} checks are wrong"
        click.echo(f"{what}: {'ready' if not wrong else 'not ready'} for study {checked.digest[:12]}")
    return code


def _approve(study: Path, name: str, state: Path | None) -> str:
    command = ["voxring", "party", "approve", str(study), "--name", name, *(["--state", str(state)] if state else [])]
    return shlex.join(command)


def _print(finding: Finding, *, private: bool, as_json: bool) -> None:
    more = finding.private if private else "--names says which" if finding.private and finding.state == "wrong" else ""
    words = "; ".join(filter(None, (finding.words, more)))
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode({"check": finding.check, "state": finding.state, "words": words}).decode())
        return
    mark = {"ok": "ok", "note": "note", "wrong": "WRONG"}[finding.state]
    click.echo(f"{mark:<6}{finding.check:<10}{words}")


def findings(plan: Plan, approve: str) -> Iterator[Finding]:
    """Check everything, in the order in which an operator would mend it; ``approve`` is the command that approves."""
    for check, look in (
        ("key", lambda: _key(plan)),
        ("clock", lambda: _clock(plan)),
        ("network", lambda: _network(plan)),
        ("disk", lambda: _disk(plan)),
        ("approval", lambda: _approval(plan, approve)),
        ("budget", lambda: _budget(plan)),
        ("device", lambda: _device(plan)),
        ("model", lambda: _model(plan)),
    ):
        yield from _judged(check, look)
    yield from _images(plan)


def _judged(check: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Take an error for what is wrong; those of these checks name no image."""
    try:
        yield from look()
    except VoxringError as error:
        yield Finding(check, "wrong", str(error), code=error.exit_code)


# Who this is, and when.


def _key(plan: Plan) -> Iterator[Finding]:
    from voxring.net.keys import PrivateKey, fingerprint, keyring

    private = None if plan.key is None else PrivateKey.read(plan.key)
    ring = keyring(plan.study, plan.name, private)
    if ring is not None:
        told = fingerprint(ring.key.public)
        yield Finding("key", "ok", f"that of {plan.name}, for its owner's eyes alone; fingerprint {told}")
    elif plan.insecure:
        yield Finding("key", "note", "the study has no keys: whoever reads its links can work out this party's numbers")
    else:
        raise StudyError(
            "the study has no keys, so its links are not encrypted: make keys with `voxring keys new`, or pass "
            "--insecure if the network itself is trusted"
        )


def _clock(plan: Plan) -> Iterator[Finding]:
    """No peer tells the time: what there is to hold a clock against is what was written earlier, and the kernel."""
    from voxring.session.ledger import Ledger

    now = time.time()
    today = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    ledger = Ledger(plan.state, plan.name)
    known = max([_released(), *(_seconds(entry.time) for entry in (ledger.entries()[-1:] if ledger.exists else []))])
    if now < known:
        raise StudyError(
            f"it says {today}, and this release of voxring, or the last entry of the ledger, is younger: set the clock"
        )
    synchronised = _synchronised()
    over_relay = "over a relay the members' clocks must agree within two hours"
    if synchronised is None:
        yield Finding(
            "clock", "note", f"it says {today}; whether it is synchronised cannot be known here; {over_relay}"
        )
    elif synchronised:
        yield Finding("clock", "ok", f"{today}, synchronised")
    else:
        yield Finding("clock", "note", f"it says {today}, and is not synchronised: turn NTP on; {over_relay}")


def _released() -> float:
    """When the files of this release were written, at the latest: no right clock is before that."""
    import voxring

    return os.stat(voxring.__file__).st_mtime - 86400  # installers may keep the time zone of where it was made


def _seconds(written: str) -> float:
    from datetime import datetime

    try:
        return datetime.fromisoformat(written).timestamp()
    except ValueError:
        return 0.0  # a ledger that was tampered with is told of under its own name


def _synchronised() -> bool | None:
    """Ask the kernel whether something keeps its clock right; None where it does not tell."""
    try:
        answer = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if answer < 0 else answer != _TIME_ERROR


# Who can be reached.


def _network(plan: Plan) -> Iterator[Finding]:
    from voxring.net.address import check_address

    relay = plan.study.relay if plan.relay is None else plan.relay
    sealed = bool(plan.study.keys)
    if relay:
        if not sealed:
            raise StudyError("a relay carries sealed frames alone, and the study has no keys: make them")
        if plan.address:
            raise StudyError("an address and a relay: over a relay no party listens: leave one of them out")
        where = check_address("the relay", relay, sealed=True, insecure=False)
        trouble = _reach(where)
        if trouble:
            raise PeerError(f"the relay at {where} is not reached: {trouble}: is it running, is the way out open?")
        yield Finding("network", "ok", f"the relay at {where} takes connections; no party listens")
        return
    addresses = {party.name: party.address for party in plan.study.party}
    own = check_address(plan.name, plan.address or addresses[plan.name], sealed=sealed, insecure=True)
    _bind(own)
    yield Finding("network", "ok", f"{own} is free to listen at; whether others get through to it, they see")
    missing = {}
    for other, address in addresses.items():
        if other != plan.name and (trouble := _reach(check_address(other, address, sealed=sealed, insecure=True))):
            missing[other] = trouble
    if missing:
        told = "; ".join(f"{other}: {trouble}" for other, trouble in missing.items())
        yield Finding(
            "network", "note", f"not reached, which is no fault before they have started their parties: {told}"
        )
    else:
        yield Finding("network", "ok", "all other parties take connections")


def _place(address: str) -> tuple[str, int]:
    parts = urlsplit(address)
    return parts.hostname or "", parts.port or 0


def _bind(address: str) -> None:
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(*_place(address), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as here:
            here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            here.bind(place)
    except OSError as error:
        raise PeerError(
            f"cannot listen at {address}: {error.strerror}: end what uses the port; or, if the address is not this "
            "machine's own, give --address tcp://0.0.0.0:PORT"
        ) from None


def _reach(address: str) -> str:
    """Open a connection and close it; return what went wrong, or nothing."""
    try:
        with socket.create_connection(_place(address), REACH_SECONDS):
            return ""
    except TimeoutError:
        return f"no answer within {REACH_SECONDS:g} s, as a firewall does"
    except ConnectionRefusedError:
        return "the machine answers, nothing listens there"
    except OSError as error:
        return str(error.strerror)


# What this machine has.


def _disk(plan: Plan) -> Iterator[Finding]:
    from voxring.session.coins import CoinFile
    from voxring.session.ledger import Ledger

    try:
        plan.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=plan.state) as probe:
            probe.write(bytes(4096))
            probe.flush()
            os.fsync(probe.fileno())
        free = shutil.disk_usage(plan.state).free
    except OSError as error:
        raise StudyError(f"{plan.state} cannot be written: {error.strerror}: make room, or choose --state") from None
    coin = CoinFile(plan.state, plan.study, plan.name).read()
    ledger = Ledger(plan.state, plan.name)
    entries = len(ledger.verified()) if ledger.exists else 0
    if free < LEAST_FREE:
        raise StudyError(f"{plan.state}: expected {_size(LEAST_FREE)} free, got {_size(free)}: make room")
    kept = f"{'a' if coin else 'no'} coin of this study, a ledger of {entries} entries"
    yield Finding("disk", "ok", f"{plan.state} can be written, {_size(free)} free; it holds {kept}")


def _budget(plan: Plan) -> Iterator[Finding]:
    """What a study with differential privacy would spend, and whether the ledger lets it; nothing for another."""
    from voxring.privacy import cost
    from voxring.session.account import Account
    from voxring.session.ledger import Ledger

    Account(Ledger(plan.state, plan.name), plan.study).check_budget()
    if plan.study.differential_privacy is not None:
        yield Finding("budget", "ok", f"a run spends {cost(plan.study)}, which the ledger allows")


def _approval(plan: Plan, approve: str) -> Iterator[Finding]:
    from voxring.session.account import Account
    from voxring.session.ledger import Ledger

    try:
        Account(Ledger(plan.state, plan.name), plan.study, command=approve).check_approved()
    except StudyError as error:
        yield Finding("approval", "note", str(error))
    else:
        yield Finding("approval", "ok", f"{plan.name} has approved study {plan.study.digest[:12]}")


def _device(plan: Plan) -> Iterator[Finding]:
    from voxring.devices import promise

    yield Finding("device", "ok", f"computes on {promise(plan.device)}")  # type: ignore[arg-type]  # click checks it


def _model(plan: Plan) -> Iterator[Finding]:
    """The model that a study evaluates; nothing for another study."""
    from voxring.learn.evaluation import model_of

    if plan.study.evaluate is not None:
        yield Finding("model", "ok", f"{model_of(plan.study).classifier}, the one that the study evaluates")


# What there is to compute.


@dataclass(frozen=True, slots=True)
class _Looked:
    """What a row's headers and ground truth say: bytes that a worker takes for it, and which classes it has."""

    memory: int
    classes: tuple[str, ...]


def _images(plan: Plan) -> Iterator[Finding]:
    from voxring.batch import read_manifest
    from voxring.images import Room

    try:
        rows = read_manifest(plan.manifest)
    except StudyError as error:
        yield Finding("manifest", "wrong", "the manifest cannot be used", str(error), error.exit_code)
        return
    yield Finding("manifest", "ok", "it can be read, and every file in it is there", f"{len(rows)} rows")
    room, most, bad, having = Room(), 0, [], Counter[str]()
    study = _with_its_model(plan.study)
    for row in rows:
        with room.used():
            try:
                looked = _look(row, study)
                if plan.whole:
                    _read_whole(row, study)
            except ImageError as error:
                bad.append((row.line, error))
                continue
        most = max(most, looked.memory)
        having.update(looked.classes)
    if bad:
        lines = "".join(f"\n  line {line}: {error}" for line, error in bad)
        yield Finding(
            "images",
            "wrong",
            "there are rows that cannot be used: correct them, or have the party leave them out with --skip-bad",
            f"{len(bad)} of {len(rows)} rows:{lines}",
            ImageError.exit_code,
        )
    else:
        what = "images" if plan.whole else "headers"
        yield Finding("images", "ok", f"all {what} and ground truths can be read, and lie on one grid")
    yield _classes(plan.study, having, len(rows) - len(bad))
    if len(bad) < len(rows):
        yield _memory(most, plan.workers)


def _with_its_model(study: Study) -> Study:
    """The study without what it evaluates where that cannot be read, which has been said under its own name."""
    from msgspec.structs import replace

    try:
        _made_of(study)
    except ModelError:
        return replace(study, evaluate=None)
    return study


def _look(row: Row, study: Study) -> _Looked:
    from voxring.batch import blocks
    from voxring.batch.row import open_row
    from voxring.images import rectangles

    image, opened = open_row(row, study)
    side = blocks.side_of(study)
    if blocks.pays(image, opened, side):  # as a party reads it: never whole
        labels, widest, found = {name: opened.find(label) for name, label in study.classes.items()}, 0, set[str]()
        for block in rectangles.rectangles(image.grid.shape, image.block or (1, 1), opened.block or (1, 1)):
            part, _ = opened.read_block(*block)
            widest = max(widest, part.size * max(part.itemsize, image.dtype.itemsize))
            found |= {name for name in labels.keys() - found if (part == labels[name]).any()}
        return _Looked(2 * widest + _of_maps(study, (side, side)), tuple(found))
    truth = opened.read()
    voxels = prod(image.grid.shape)
    truths, present = [], []
    for name, label in study.classes.items():
        layer, value = truth.find(label)
        truths.append((truth.layers[layer], [value]))
        if (truth.layers[layer] == value).any():
            present.append(name)
    volume = voxels * max(image.dtype.itemsize, *(layer.itemsize for layer in truth.layers))
    return _Looked(2 * volume + _on_the_way(study, image, truths), tuple(present))


def _on_the_way(study: Study, image: ImageFile, truths: list[tuple[Array, list[int]]]) -> int:
    """Bytes of what is made of an image before it is summed: standardised integers, and maps of features."""
    from voxring.engine import depends_on_all, planes_needed, widest
    from voxring.statistics import layout

    shape, method = image.grid.shape, study.standardise.method
    scale = {"slope": image.slope, "intercept": image.intercept}
    in_slabs = len(shape) == 3 and depends_on_all(image.dtype, study, **scale)
    first, stop = planes_needed(truths, image.dtype, study, **scale, scaled=in_slabs)
    if first == stop:
        return 0
    wide = image.dtype.kind == "f" or image.dtype.itemsize > 2
    plane = prod(shape[1:])
    size = widest(study, len(shape))[0]  # a slab is read with what windows over it reach
    planes = min(stop - first, max(size, shape[0] // 8) + size - 1) if in_slabs else stop - first
    of_voxel = 8 * (wide + (wide or method not in ("none", "zscore")) + bool(layout(study)))
    return of_voxel * planes * plane + wide * _AT_ONCE * max(_PIECE, plane) + _of_maps(study, shape)


def _of_maps(study: Study, shape: tuple[int, ...]) -> int:
    """Bytes of the maps of features, of a study or the model that it evaluates, that are in hand at a time.

    They are of whole planes, 8 bytes a voxel and map, and once more those of the voxels of a class; beside them lie the
    intensities, those of a class, their places, and the number of each voxel's class.
    """
    from voxring.statistics import layout, of_images

    if not layout(study) and not study.logistic:
        return 0
    from voxring.features import SLAB

    voxels, plane = prod(shape), prod(shape[-2:])
    own, *together = [len(one.feature) for one in _made_of(study)]
    if study.logistic:
        together.append(own)
    if of_images(study):
        together.append(own if study.statistics.gram else 0)
    return 2 * voxels + max(8 * (2 * maps + 5) * min(voxels, max(plane, SLAB // max(1, maps))) for maps in together)


def _made_of(study: Study) -> tuple[Study, ...]:
    """A study, and that of the model that it evaluates."""
    if study.evaluate is None:
        return (study,)
    from voxring.learn.evaluation import model_of

    return study, model_of(study).study


def _read_whole(row: Row, study: Study) -> None:
    """Read an image to its end, a large one in blocks."""
    from voxring.images import open_image, rectangles

    image = open_image(row.image, study.colour)
    if image.block is None:
        image.read()
        return
    for block in rectangles.rectangles(image.grid.shape, image.block):
        image.read_block(*block)


def _classes(study: Study, having: Counter[str], images: int) -> Finding:
    told = ", ".join(f"{name} in {having[name]}" for name in study.classes)
    private = f"of {images} images: {told}"
    if all(having[name] for name in study.classes):
        return Finding("classes", "ok", "every class of the study occurs", private)
    return Finding(
        "classes",
        "note",
        "a class of the study occurs in no image: are its label and the segments' names those of the study?",
        private,
    )


def _memory(most: int, workers: int) -> Finding:
    """Hold what the largest row and an interpreter take, for each worker, against what is free."""
    need, free = workers * (most + WORKER_BYTES), free_memory()
    words = f"{workers} workers need about {_size(need)}"
    if free is None:
        return Finding("memory", "note", f"{words}; how much is free cannot be known here")
    if need <= free:
        return Finding("memory", "ok", f"{words}, {_size(free)} are free")
    fewer = max(1, free // (most + WORKER_BYTES))
    return Finding(
        "memory",
        "wrong",
        f"{words}, {_size(free)} are free: use --workers {fewer}, or a machine with more",
        code=DeviceError.exit_code,
    )


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that programs may still take: what the system has, and what a container's limit leaves."""
    found = []
    try:
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        group = root / "sys/fs/cgroup"
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            found.append(max(0, int(limit) - int((group / "memory.current").read_text(encoding="ascii"))))
    except (OSError, ValueError):
        pass  # another system, or another kind of group
    return min(found, default=None)


def _size(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / MIB:.0f} MiB"
