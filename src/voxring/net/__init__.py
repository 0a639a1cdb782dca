"""Links, listeners and streams over nng: bytes to one peer and bytes back, and long vectors one way (`streams`). The
only package that imports pynng.

`link` and `listener` carry frames, `relayed` does so through a relay, which is `relay`, `exchange` and `mailbox`;
`relayed_streams` are streams through it.
`keys` are who the members are, `channel` seals frames between two of them, and `sealed` puts it over what carries them:
links of a study with keys are sealed end to end, whatever that is. `network` decides, once, for a member of a study.

Links are requests and replies (Req0, Rep0), since those of nng's other patterns lose a message whose send() returned
when the peer dies. A request may be delivered twice, so whoever answers must be idempotent; `voxring.session` is.
"""

from voxring.net.keys import PrivateKey
from voxring.net.link import Link
from voxring.net.listener import Listener
from voxring.net.network import Ear, Network
from voxring.net.presence import Presence
from voxring.net.sealed import Asking
from voxring.net.streams import Streams

__all__ = ["Asking", "Ear", "Link", "Listener", "Network", "Presence", "PrivateKey", "Streams"]
