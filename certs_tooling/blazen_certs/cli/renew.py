"""``blazen-certs renew`` and ``needs-renewal``: for scripts, which go by the exit code."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from blazen_certs.authority import Authority
from blazen_certs.cli.options import DEFAULT_STORE, AsJson, PassphraseFile, RootDir, Store, root_keys
from blazen_certs.cli.output import CHECK_FAILED, DONE, print_json, print_lines
from blazen_certs.cli.sidecars import Sidecars, SidecarSecs, await_sidecars, sidecars_of
from blazen_certs.errors import StoreError
from blazen_certs.facts import time_text
from blazen_certs.issued import known_nodes
from blazen_certs.issuing_renewal import IssuingStep, keep_issuing
from blazen_certs.node_state import node_state
from blazen_certs.renewal import renewal_time
from blazen_certs.sidecar import look_at_sidecar
from blazen_certs.trust import read_trust
from blazen_certs.upkeep import Kept, keep_nodes, local_nodes, why_due
from blazen_peer.errors import ValidationError

__all__ = ["NOT_DUE", "needs_renewal", "renew"]

NOT_DUE = 3
_STYLES = {
    "renewed": "green",
    "activated": "green",
    "prepared": "green",
    "failed": "bold red",
    "revoked": "yellow",
    "waits": "yellow",
}
_Nodes = Annotated[list[str] | None, typer.Argument(metavar="[NODE...]", help="Which nodes. None: all in the store.")]


def renew(
    nodes: _Nodes = None,
    force: Annotated[bool, typer.Option("--force", help="Renew even what is not due.")] = False,
    issuing: Annotated[bool, typer.Option("--issuing", help="Renew issuing CAs, not nodes. Needs the root's key.")] = False,
    sidecar: Sidecars = None,
    sidecar_secs: SidecarSecs = 10.0,
    root_dir: RootDir = None,
    passphrase_file: PassphraseFile = None,
    directory: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Renew what is due: at two thirds of its life, up to 10 % earlier. What is not due gets the present bundle and lists.

    A new certificate has a new key, the same names and the same lifetime. A node that was revoked is not renewed.

    [bold]Example[/bold]

      blazen-certs renew analyst --sidecar /run/blazen/analyst/admin.sock

      blazen-certs renew --issuing --root-dir /media/safe
    """
    authority = Authority.open(directory, keys=root_keys(root_dir, passphrase_file))
    now = datetime.now(UTC)
    if issuing:
        if nodes or sidecar:
            raise ValidationError("--issuing takes neither nodes nor --sidecar: it renews the issuing CA of each region")
        _end([_issuing_row(step) for step in keep_issuing(authority, now=now, force=force)], as_json, "regions")
        return
    wanted = nodes or local_nodes(authority)
    if not wanted:
        raise StoreError(f"{directory} has no node: make one with blazen-certs issue NODE")
    sidecars = sidecars_of(sidecar, wanted)
    before = {node: look_at_sidecar(path) for node, path in sidecars.items()}
    done = keep_nodes(authority, wanted, now=now, force=force)
    rows = [_node_row(kept) for kept in done]
    served = await_sidecars(authority, done, sidecars, before, sidecar_secs)
    for row in rows:
        if row["node"] in served:
            row["sidecar"] = served[row["node"]] or "serves it"
            if served[row["node"]] is not None:
                row["action"] = "failed"
    _end(rows, as_json, "nodes")


def needs_renewal(nodes: _Nodes = None, directory: Store = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Say which nodes need a new certificate; change nothing. For scripts: exit code 0 when one does, 3 when none does.

    [bold]Example[/bold]

      blazen-certs needs-renewal analyst && blazen-certs renew analyst
    """
    now = datetime.now(UTC)
    trust = read_trust(directory)
    if trust is None:
        raise StoreError(f"there is no CA in {directory}: name the store with --dir")
    wanted = nodes or local_nodes(Authority(directory, trust.trust_domain))
    found: list[dict[str, Any]] = []
    known = known_nodes(directory)
    for node in wanted:
        state = node_state(directory, trust, node)
        if node not in known:
            raise StoreError(f"{node} has no identity in {directory}: make one with blazen-certs issue {node}")
        reason = None if state.revoked is not None else why_due(state, trust, now=now)
        due = None if state.certificate is None else time_text(renewal_time(state.certificate))
        found.append({"node": node, "needs_renewal": reason is not None, "reason": reason, "due": due})
    if as_json:
        print_json({"nodes": found})
    else:
        for item in found:
            word = Text("yes", "yellow") if item["needs_renewal"] else Text("no ", "green")
            print_lines([Text.assemble(word, f"  {item['node']}  ", item["reason"] or f"due {item['due']}")])
    raise typer.Exit(DONE if any(item["needs_renewal"] for item in found) else NOT_DUE)


def _node_row(kept: Kept) -> dict[str, Any]:
    row: dict[str, Any] = {"node": kept.node, "action": kept.action, "detail": kept.detail, "version": kept.version}
    if kept.certificate is not None:
        end = kept.certificate.not_valid_after_utc
        row |= {
            "serial": f"{kept.certificate.serial_number:x}",
            "not_after": time_text(end),
            "next": time_text(renewal_time(kept.certificate)),
        }
    return row


def _issuing_row(step: IssuingStep) -> dict[str, Any]:
    return {"region": step.region, "action": step.action, "detail": step.detail}


def _end(rows: list[dict[str, Any]], as_json: bool, what: str) -> None:
    """Print *rows* and end with the exit code that sums them up."""
    if as_json:
        print_json({what: rows})
    for row in () if as_json else rows:
        action = str(row["action"])
        text = Text.assemble((action.ljust(11), _STYLES.get(action, "")), " ", str(row.get("node", row.get("region"))), "  ")
        detail = row["detail"]
        if action == "renewed":
            detail = f"v{row['version']}, serial {row['serial']}, until {row['not_after']}; next {row['next']} ({detail})"
        sidecar = f"; sidecar: {row['sidecar']}" if "sidecar" in row else ""
        print_lines([text.append(detail + sidecar)])
    actions = {row["action"] for row in rows}
    if "failed" in actions:
        raise typer.Exit(CHECK_FAILED)
    if not actions & {"renewed", "prepared", "activated"}:
        raise typer.Exit(NOT_DUE)
