"""``python -m blazen_peer.cli`` is ``blazen-peer``."""

from blazen_peer.cli.main import entry

entry()
