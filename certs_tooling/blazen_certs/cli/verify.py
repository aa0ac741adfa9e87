"""``blazen-certs verify``: is an identity right?"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from blazen_certs import store
from blazen_certs.cli.options import DEFAULT_STORE, AsJson, Store, dir_option
from blazen_certs.cli.output import CHECK_FAILED, print_json, print_lines
from blazen_certs.cli.targets import identity_of
from blazen_certs.facts import time_text
from blazen_certs.show import report_lines
from blazen_certs.trust import read_trust
from blazen_certs.verify import verify_identity
from blazen_peer.errors import ValidationError

__all__ = ["verify"]


def verify(
    target: Annotated[str, typer.Argument(metavar="NODE_OR_DIR", help="A node of the store, or a directory with the files.")],
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="Check for this moment: 2026-12-01, or 2026-12-01T08:00:00Z.")
    ] = None,
    directory: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Check a node's identity: files and modes, chain, name, purpose, dates, revocation, and that key and
    certificate match.

    Exit code 0: valid. 1: a check failed; each failure says what to do. 2: there is nothing to check.

    [bold]Example[/bold]

      blazen-certs verify analyst

      blazen-certs verify /etc/mesh/identity --at 2026-12-01
    """
    moment = datetime.now(UTC) if at is None else _moment(at)
    identity, node = identity_of(target, directory)
    in_store = identity == store.node_directory(directory, target)
    trust = read_trust(directory) if in_store else None
    reissue = f"blazen-certs issue {node or 'NODE'}{dir_option(directory)}"
    report = verify_identity(
        identity, at=moment, node_id=node, trust=trust, reissue=reissue, resign=f"blazen-certs crl{dir_option(directory)}"
    )
    if as_json:
        checks = [{"name": check.name, "ok": check.ok, "detail": check.detail, "fix": check.fix} for check in report.checks]
        print_json({"directory": str(report.directory), "at": time_text(moment), "valid": report.ok, "checks": checks})
    else:
        when = "" if at is None else f" at {time_text(moment)}"
        print_lines([Text.assemble((str(report.directory), "bold"), when), *report_lines(report)])
    if not report.ok:
        raise typer.Exit(CHECK_FAILED)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValidationError(f"--at {text!r} is no time: use 2026-12-01, or 2026-12-01T08:00:00Z") from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
