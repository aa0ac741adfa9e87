"""For tests of programs that use blazen_peer, and for its own: no network, no sleeping, no pytest needed.

:func:`peers` gives a server and a client connected to it, in this process; its :class:`Link` loses, delays and breaks calls;
its :class:`Recorder` knows which step was executed how often and for whom; :func:`virtual_time` lets minutes pass at once.
"""

from blazen_peer.testing.clock import VirtualClock, virtual_time
from blazen_peer.testing.link import Link
from blazen_peer.testing.peers import Peers, peers
from blazen_peer.testing.recorder import Execution, Recorder

__all__ = ["Execution", "Link", "Peers", "Recorder", "VirtualClock", "peers", "virtual_time"]
