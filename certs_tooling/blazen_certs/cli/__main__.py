"""``python -m blazen_certs.cli`` is ``blazen-certs``."""

from blazen_certs.cli.main import entry

entry()
