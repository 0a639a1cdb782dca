"""Links and listeners over nng: bytes to one peer and bytes back. The only package that imports pynng.

`link` and `listener` carry frames, `keys` are who the members are, `channel` seals frames between two of them, and
`sealed` puts it over the first two. Links of a study with keys are sealed end to end, whatever carries the frames.

Requests and replies (Req0, Rep0), since those of nng's other patterns lose a message whose send() returned when the
peer dies. A request may be delivered twice, so whoever answers must be idempotent; `voxring.session` is.
"""

from voxring.net.address import check_address
from voxring.net.keys import PrivateKey, keyring
from voxring.net.link import Link
from voxring.net.listener import Listener
from voxring.net.presence import Presence
from voxring.net.sealed import Asking, link_to, listen_at

__all__ = [
    "Asking",
    "Link",
    "Listener",
    "Presence",
    "PrivateKey",
    "check_address",
    "keyring",
    "link_to",
    "listen_at",
]
