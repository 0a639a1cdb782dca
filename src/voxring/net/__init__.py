"""Links and listeners over nng: bytes to one peer and bytes back. The only package that imports pynng. Long vectors go
over plain TCP (`streams`).

Requests and replies (Req0, Rep0), since those of nng's other patterns lose a message whose send() returned when the
peer dies. A request may be delivered twice, so whoever answers must be idempotent; `voxring.session` is.
"""

from voxring.net.address import check_address
from voxring.net.link import Link
from voxring.net.listener import Listener
from voxring.net.presence import Presence

__all__ = ["Link", "Listener", "Presence", "check_address"]
