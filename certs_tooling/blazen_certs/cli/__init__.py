"""``blazen-certs``: make, check and renew the identities of a mesh. One module per command; ``main`` puts them together."""

from blazen_certs.cli.main import entry, main

__all__ = ["entry", "main"]
