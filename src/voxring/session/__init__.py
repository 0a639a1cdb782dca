"""Algorithm 1 among real processes: as one party, and as the researcher.

`plan` is what all sides agree on, `bodies` how they write it down, `coins` where a party keeps the coin that its rings
follow from, `ledger` a party's append-only file, `account` what goes into it and `differencing` which runs it keeps a
party out of, `party` and `researcher` are Algorithm 1 as two state machines without I/O, and `as_party` and
`as_researcher` drive them over `voxring.net`. The sum of a long vector goes round in chunks: `streamed` is what its
members must know before, `chunked` carries it.
"""

from voxring.ring.views import View
from voxring.session.account import Account
from voxring.session.as_party import InTwoPasses, run_party
from voxring.session.as_researcher import Course, run_researcher
from voxring.session.coins import state_folder
from voxring.session.ledger import Ledger
from voxring.session.party import Heard

__all__ = ["Account", "Course", "Heard", "InTwoPasses", "Ledger", "View", "run_party", "run_researcher", "state_folder"]
