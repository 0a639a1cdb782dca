"""How one member reaches the others: sealed or in the clear, directly or through a relay. Decided once, here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from voxring.errors import StudyError
from voxring.net.address import check_address
from voxring.net.channel import HANDSHAKE_LIMIT, OVERHEAD, Initiator, Responder
from voxring.net.keys import Keyring, PrivateKey, keyring
from voxring.net.link import Link
from voxring.net.listener import Listener
from voxring.net.mailbox import MAX_FRAME
from voxring.net.relayed import Clock, RelayLink, RelayListener
from voxring.net.sealed import Answer, Asking, SealedAnswers, SealedLink
from voxring.study import Study


class Listening(Protocol):
    """The answering end: see `voxring.net.listener.Listener`."""

    @property
    def address(self) -> str:
        """Where it listens, or which relay it listens through."""

    def close(self) -> None:
        """Stop listening."""


@dataclass(frozen=True, slots=True)
class Network:
    """One member's way to the others. Make one with `Network.of`."""

    ring: Keyring | None
    relay: str
    insecure: bool
    clock: Clock = time.time

    @classmethod
    def of(
        cls,
        study: Study,
        name: str,
        *,
        key: PrivateKey | None,
        keys: Mapping[str, str] | None,
        relay: str | None,
        insecure: bool,
        clock: Clock = time.time,
    ) -> Network:
        """Decide how a member of a study reaches the others.

        Parameters
        ----------
        study : Study
            Has keys or has none, and may name a relay.
        name : str
            The member.
        key : PrivateKey, optional
            The member's.
        keys : mapping of name to public key, optional
            Instead of the study's, for simulations.
        relay : str, optional
            Instead of the study's; an empty one means none.
        insecure : bool
            Links in the clear are accepted.
        clock : callable
            Seconds since 1970, UTC: relays have mailboxes for each day.

        Raises
        ------
        StudyError
            Key and study do not fit, or the relay cannot be used.
        """
        ring = keyring(study, name, key, keys=keys)
        relay = study.relay if relay is None else relay
        if relay and ring is None:
            raise StudyError(
                f"{name}: a relay carries sealed frames alone, and the study has no keys: make one for every member "
                "with `voxring keys new` and write the public keys in the study"
            )
        if relay:
            relay = check_address("the relay", relay, sealed=True, insecure=insecure)
        return cls(ring, relay, insecure, clock)

    def address(self, member: str, address: str) -> str:
        """Return where a member listens; through a relay that is not needed.

        Raises
        ------
        StudyError
            The address cannot be used.
        """
        if self.relay:
            return self.relay
        return check_address(member, address, sealed=self.ring is not None, insecure=self.insecure)

    def link(self, peer: str, address: str, *, max_frame: int, grace: float) -> Asking:
        """Return a link to a peer; the rest is as in `Link`."""
        if self.ring is None:
            return Link(peer, address, max_frame=max_frame, grace=grace)
        link: Asking
        if self.relay:
            self._check_size(max_frame)
            link = RelayLink(peer, self.relay, self.ring.digest, grace=grace, clock=self.clock)
        else:
            link = Link(peer, address, max_frame=_sealed(max_frame), grace=grace)
        return SealedLink(link, Initiator(self.ring, peer))

    def listen(self, address: str, answer: Answer, closed: Callable[[int], None], *, max_frame: int) -> Ear:
        """Listen; ``answer(frame, pipe, peer)`` gets the name of the member who asks, proven, or None in the clear."""
        if self.ring is None:
            return Ear(Listener(address, lambda frame, pipe: answer(frame, pipe, None), closed, max_frame=max_frame))
        answers = SealedAnswers(Responder(self.ring), answer)
        if self.relay:
            self._check_size(max_frame)
            through = RelayListener(self.ring.name, self.relay, self.ring.digest, answers, closed, clock=self.clock)
            return Ear(through, lambda: answers.refused, lambda: through.trouble)
        return Ear(Listener(address, answers, closed, max_frame=_sealed(max_frame)), lambda: answers.refused)

    @staticmethod
    def _check_size(max_frame: int) -> None:
        """Refuse messages of more bytes than a relay carries."""
        if _sealed(max_frame) > MAX_FRAME:
            raise StudyError(
                f"messages of this study may have {_sealed(max_frame)} bytes, a relay carries {MAX_FRAME}: let the "
                "members connect directly, or split the classes over several studies"
            )


@dataclass(frozen=True, slots=True)
class Ear:
    """A listener and what it can say of what went wrong, for errors."""

    listener: Listening
    refused: Callable[[], str] = str
    """Returns why the last frame was refused, if one was."""
    trouble: Callable[[], str] = str
    """Returns what is wrong with the relay, if something is."""

    @property
    def address(self) -> str:
        """Where others are heard."""
        return self.listener.address

    def __enter__(self) -> Ear:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.listener.close()


def _sealed(max_frame: int) -> int:
    return max(max_frame + OVERHEAD, HANDSHAKE_LIMIT)
