"""``blazen-peer``: serve steps, run remote workflows, look at a peer, make a token."""

from blazen_peer.cli.main import entry, main

__all__ = ["entry", "main"]
