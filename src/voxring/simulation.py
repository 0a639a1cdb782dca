"""A whole study on one machine: every party in a process of its own, over real sockets on the loopback address."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxring import processes
from voxring.errors import PeerError, StudyError, VoxringError
from voxring.landmarks import landmarks_learned, standard_scale
from voxring.learn.logistic import fit, fitted_of
from voxring.result import Result, document_of
from voxring.ring.order import RESEARCHER
from voxring.study import Party, Study, expect_study
from voxring.totals import LocalTotals, Statistics, pooled

if TYPE_CHECKING:
    from voxring.net import PrivateKey
    from voxring.session import Course, Heard, View

Notify = Callable[[str, str], None]
_LOOPBACK = "tcp://127.0.0.1:0"
_START_SECONDS = 60.0


@dataclass(frozen=True, repr=False)
class Simulated(Result):
    """The result of a simulated study, and what each process heard."""

    researcher: View
    parties: dict[str, Heard]
    seconds: float
    course: Course


def simulate(
    study: Study,
    manifests: Mapping[str, str | Path],
    *,
    timeout: float = 60.0,
    notify: Notify = lambda who, what: None,
) -> Simulated:
    """Run Algorithm 1 with one process for each party, over nng sockets on 127.0.0.1.

    Links are sealed with keys made for this run, in memory alone, whether or not the study has any.

    Parameters
    ----------
    study : Study
        Its ``[[party]]`` tables, when it has any, must name the same parties as ``manifests``.
    manifests : mapping of party name to path
        At least three.
    timeout : float
        Seconds after which a silent peer ends the study.
    notify : callable
        Called with (who, what) from a thread of its own as the parties advance.

    Returns
    -------
    Simulated
        A `voxring.Result` that also tells what each process heard.

    Raises
    ------
    StudyError
        The parties are too few or not those of the study.
    ModelError
        The study evaluates a model that cannot be read, or is another.
    ImageError, BoundError, PeerError, ProtocolError
        What ended the study; the first cause is told, and every process has ended.
    """
    expect_study(study)
    if not isinstance(manifests, Mapping):
        raise StudyError(
            f"expected a manifest for each party by its name, got {type(manifests).__name__}: give them as "
            '{"north": "north/manifest.csv", …}'
        )
    if timeout <= 0:
        raise StudyError(f"timeout: expected seconds above 0, got {timeout}: 60 is usual")
    study = with_parties(study, list(manifests))
    if study.evaluate is not None:
        from voxring.learn.evaluation import model_of

        model_of(study)
    from voxring.net import PrivateKey

    private = {name: PrivateKey.new() for name in (*study.parties, RESEARCHER)}
    public = {name: key.public for name, key in private.items()}
    children = [
        _Child(study, name, str(manifests[name]), timeout, len(manifests), private[name], public)
        for name in study.parties
    ]
    watcher = _Watcher(children, notify)
    start = time.monotonic()
    try:
        watcher.start()
        addresses = watcher.addresses()
        from voxring.session import Course, run_researcher

        course = Course()
        answer, view = run_researcher(
            study,
            peers=addresses,
            key=private[RESEARCHER],
            keys=public,
            relay="",
            timeout=timeout,
            notify=lambda what: notify(RESEARCHER, what),
            course=course,
        )
        heard = watcher.outcomes(timeout)
    except PeerError as error:
        watcher.raise_first_cause(timeout)
        raise error
    finally:
        watcher.stop()
    seconds = time.monotonic() - start
    fitted = fitted_of(view.learned, study)
    document = document_of(answer, study, landmarks=landmarks_learned(view.learned), fitted=fitted)
    return Simulated(study, answer, document, view, heard, seconds, course)


def with_parties(study: Study, names: list[str]) -> Study:
    """Give a study without ``[[party]]`` tables its parties, or check that it has these.

    Raises
    ------
    StudyError
        The names differ, or are fewer than ``privacy.min_parties``.
    """
    if not study.party:
        if len(names) < study.privacy.min_parties:
            raise StudyError(
                f"expected at least {study.privacy.min_parties} parties, got {len(names)}: "
                "name one more, with its manifest (--party NAME=MANIFEST)"
            )
        return study.with_parties([Party(name=name) for name in names])
    if set(names) != set(study.parties):
        raise StudyError(
            f"the study's parties are {', '.join(study.parties)}, got {', '.join(names)}: give one manifest each"
        )
    return study


def pooled_result(study: Study, manifests: Mapping[str, str | Path]) -> Result:
    """The same result in the open: all images in this process, no ring. What a simulation must equal to the bit."""
    from voxring.batch import party_totals

    study = with_parties(study, list(manifests))

    def everything(study: Study) -> LocalTotals:
        return sum((party_totals(manifest, study) for manifest in manifests.values()), LocalTotals())

    landmarks = everything(study) if study.agrees else None
    by = study if landmarks is None else study.with_landmarks(standard_scale(landmarks, study))
    answer = pooled(everything(by), by)
    released = {name: one for name, one in answer.items() if isinstance(one, Statistics)}
    fitted = fit(by, released, everything) if study.logistic is not None else None
    return Result.of(answer, study, landmarks=landmarks, fitted=fitted)


@dataclass(slots=True)
class _Child:
    """One party's process and the pipe it reports through."""

    study: Study
    name: str
    manifest: str
    timeout: float
    siblings: int
    key: PrivateKey
    keys: Mapping[str, str]
    pipe: Connection = field(init=False)
    process: Any = field(init=False, default=None)
    address: str | None = None
    heard: Heard | None = None
    error: VoxringError | None = None
    ended: bool = False

    def start(self) -> None:
        # spawn: nng aborts in a forked child, and a child must not inherit another party's memory.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        threads = max(1, len(os.sched_getaffinity(0)) // self.siblings)
        self.process = context.Process(
            target=_party_process,
            args=(theirs, self.study, self.name, self.manifest, self.timeout, threads, self.key, self.keys),
            name=f"voxring {self.name}",
            daemon=True,
        )
        processes.start(self.process)
        theirs.close()


def _party_process(
    pipe: Connection,
    study: Study,
    name: str,
    manifest: str,
    timeout: float,
    threads: int,
    key: PrivateKey,
    keys: Mapping[str, str],
) -> None:
    """Be one party: everything it says goes through the pipe, as (kind, content)."""
    from voxring.batch import party_totals, read_manifest
    from voxring.session import InTwoPasses, run_party

    def listening(address: str) -> Mapping[str, str]:
        pipe.send(("address", address))
        peers: Mapping[str, str] = pipe.recv()
        return peers

    def progress(done: int, total: int) -> None:
        pipe.send(("says", f"image {done} of {total}"))

    def compute(study: Study) -> LocalTotals:
        return party_totals(manifest, study, threads=threads, progress=progress)

    once = partial(compute, study)
    try:
        read_manifest(manifest)  # a wrong manifest is told before anybody waits for this party
        heard = run_party(
            study,
            name,
            InTwoPasses(once, compute) if study.agrees else once,
            step=None if study.logistic is None else compute,
            state=None,
            address=_LOOPBACK,
            listening=listening,
            key=key,
            keys=keys,
            relay="",
            timeout=timeout,
            notify=lambda what: pipe.send(("says", what)),
        )
        pipe.send(("heard", heard))
    except VoxringError as error:
        pipe.send(("error", error))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return  # the parent has gone or was interrupted; there is nobody to tell
    finally:
        pipe.close()


class _Watcher:
    """Reads what the parties report, in a thread, while the researcher runs."""

    def __init__(self, children: list[_Child], notify: Notify) -> None:
        self.children, self.notify = children, notify
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="voxring watcher", daemon=True)

    def start(self) -> None:
        for child in self.children:
            child.start()
        self.thread.start()

    def addresses(self) -> dict[str, str]:
        """Wait until every party listens, tell all where, and return where."""
        with self.changed:
            self.changed.wait_for(
                lambda: all(c.address for c in self.children) or any(c.ended for c in self.children), _START_SECONDS
            )
        self._raise_errors()
        silent = [c.name for c in self.children if not c.address]
        if silent:
            raise PeerError(f"{', '.join(silent)}: the process did not start within {_START_SECONDS:g} s")
        where = {c.name: c.address for c in self.children if c.address}
        for child in self.children:
            child.pipe.send(where)
        return where

    def outcomes(self, timeout: float) -> dict[str, Heard]:
        """Wait until every party has ended well."""
        self._wait_all_ended(timeout)
        self._raise_errors()
        self._raise_if_died()
        heard = {c.name: c.heard for c in self.children if c.heard is not None}
        silent = [c.name for c in self.children if c.name not in heard]
        if silent:
            raise PeerError(
                f"{', '.join(silent)}: the process did not end within {timeout:g} s of the study: it was ended"
            )
        return heard

    def raise_first_cause(self, timeout: float) -> None:
        """Raise what a party says went wrong in its own walls, rather than that others lost it."""
        self._wait_all_ended(timeout + 1)
        for child in self.children:
            if child.error is not None and not isinstance(child.error, PeerError):
                raise child.error
        self._raise_if_died()

    def stop(self) -> None:
        started = [child for child in self.children if child.process is not None and child.process.pid is not None]
        for child in started:
            if child.process.is_alive():
                child.process.join(1)
            if child.process.is_alive():
                child.process.terminate()
                child.process.join()
        if self.thread.ident is not None:
            self.thread.join(5)
        for child in started:
            child.pipe.close()

    def _wait_all_ended(self, timeout: float) -> None:
        with self.changed:
            self.changed.wait_for(lambda: all(c.ended for c in self.children), timeout)

    def _raise_if_died(self) -> None:
        died = [c.name for c in self.children if c.ended and c.heard is None and c.error is None]
        if died:
            raise PeerError(f"{', '.join(died)}: the process ended before the study did: start it again")

    def _raise_errors(self) -> None:
        for child in sorted(self.children, key=lambda c: isinstance(c.error, PeerError)):
            if child.error is not None:
                raise child.error

    def _run(self) -> None:
        open_pipes = {child.pipe: child for child in self.children}
        while open_pipes:
            for pipe in wait(list(open_pipes)):
                child = open_pipes[pipe]  # type: ignore[index]  # wait returns what it was given
                try:
                    kind, content = child.pipe.recv()
                except (EOFError, OSError):
                    del open_pipes[child.pipe]
                    with self.changed:
                        child.ended = True
                        self.changed.notify_all()
                    continue
                self._note(child, kind, content)

    def _note(self, child: _Child, kind: str, content: Any) -> None:
        if kind == "says":
            self.notify(child.name, content)
            return
        with self.changed:
            if kind == "address":
                child.address = content
            elif kind == "heard":
                child.heard = content
            else:
                child.error = content
            self.changed.notify_all()
