"""``blazen-certs watch --from``: keeps the identities of this machine's nodes good from another machine's service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blazen_certs import store
from blazen_certs.cli.serve import until_signalled
from blazen_certs.cli.sidecars import sidecars_of
from blazen_certs.errors import StoreError
from blazen_certs.facts import time_text
from blazen_certs.issued import known_nodes
from blazen_certs.remote import ServiceAddress
from blazen_certs.remote_watch import RemoteWatch
from blazen_peer.identity import check_node_id

__all__ = ["watch_from"]


def watch_from(
    address: ServiceAddress,
    directory: Path,
    nodes: Sequence[str] | None,
    sidecars: Sequence[str] | None,
    say: Callable[[dict[str, Any]], None],
) -> None:
    """Watch *nodes* (None: all that have an identity in *directory*) until SIGTERM or SIGINT.

    *sidecars* are the values of ``--sidecar``.

    Raises:
        ValidationError: A node id is not one, or a sidecar nobody's.
        StoreError: One of them has no identity, or none has.
    """
    there = [node for node in known_nodes(directory) if _is_here(directory, node)]
    known = list(dict.fromkeys(map(check_node_id, nodes or there)))
    missing = [node for node in known if node not in there]
    if missing or not known:
        what = f"{', '.join(missing)} has no identity" if missing else "there is no identity"
        raise StoreError(f"{what} in {directory}: blazen-certs join {address} makes the first one, with a code")

    sockets = sidecars_of(sidecars, known)

    def tell(event: str, **facts: Any) -> None:
        say({"time": time_text(datetime.now(UTC)), "event": event, **facts})

    async def run() -> None:
        watches = [
            RemoteWatch(address, store.node_directory(directory, node), log=say, sidecar=sockets.get(node)) for node in known
        ]
        tell("watching", nodes=known, directory=str(directory), service=str(address))
        tasks = [asyncio.create_task(watch.run()) for watch in watches]
        stop = asyncio.create_task(until_signalled())
        try:
            # No watch ends by itself but by a mistake of ours, which is to be seen.
            done, _ = await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        tell("stopped")

    asyncio.run(run())


def _is_here(directory: Path, node: str) -> bool:
    return store.current_version(store.node_directory(directory, node)) is not None
