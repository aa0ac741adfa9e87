"""A server and its client in one process, with a link between them that can fail."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from blazen_peer.client import PeerClient
from blazen_peer.config import ServerSettings
from blazen_peer.errors import TransportError, ValidationError
from blazen_peer.runtime.registry import DEFAULT_REGISTRY, Registry
from blazen_peer.runtime.workflow import StepLike, Workflow, definition_of
from blazen_peer.server import PeerServer
from blazen_peer.testing.link import Link
from blazen_peer.testing.recorder import Recorder
from blazen_peer.transport.lanes import LaneMode

__all__ = ["Peers", "peers"]

QUICK: Final = ServerSettings(lame_duck_secs=0, drain_secs=2)
REACHED_SECS: Final = 10.0


class Peers:
    """A server, a client connected to it by way of a link, and a recorder of what the server executes. Made by :func:`peers`.

    Attributes:
        client: Connected, with the token.
        link: What its calls pass through.
        recorder: What the server executed, over all its restarts.
        token: The shared token; None where there is none.
    """

    client: PeerClient

    def __init__(
        self,
        registry: Registry,
        folder: Path,
        *,
        node_id: str,
        token: str | None,
        settings: ServerSettings,
        data_class: str | None,
        lane: LaneMode,
    ) -> None:
        """Prepare the peers without starting them: use :func:`peers`."""
        self.recorder, self.token = Recorder(), token
        self._lane = lane
        self._registry = self.recorder.watch(registry)
        self._node_id, self._settings = node_id, settings
        self._listen = f"unix:{folder / 'peer'}"
        self.link = Link(folder, self._listen, data_class)
        self._server: PeerServer | None = None
        self._serving = AsyncExitStack()
        self._clients: list[PeerClient] = []

    @property
    def server(self) -> PeerServer:
        """The server; another one after :meth:`restart`. Its own ``address`` is the way past the link.

        Raises:
            ValidationError: It was killed.
        """
        if self._server is None:
            raise ValidationError("the peer was killed: restart it")
        return self._server

    async def connect(self, node_id: str, **options: Any) -> PeerClient:
        """Return another client, connected by way of the link as *node_id* with the same token, closed with the block.

        Args:
            node_id: Names the caller.
            options: As for ``PeerClient.connect_async``; ``token=`` gives another token, ``lane=`` another way.
        """
        options = {"token": self.token, "lane": self._lane, **options}
        client = await PeerClient.connect_async(self.link.address, node_id, **options)
        self._clients.append(client)
        return client

    async def break_connections(self) -> None:
        """Break every connection through the link, and return when the clients are connected again.

        Calls in flight end with ``TransportError``, ``may_have_run`` True; their runs go on.
        """
        await self.link.down()
        await self.link.up()
        await self._reached()

    async def kill(self) -> None:
        """End the server without a word: connections break first, then its runs are cancelled and forgotten.

        What a real kill would not do: steps that were executing get ``CancelledError``, so that their ``finally`` runs.
        """
        await self.link.down()
        self._server = None
        with contextlib.suppress(_KilledError):
            await self._serving.__aexit__(_KilledError, _KilledError(), None)

    async def restart(self) -> None:
        """Start the server anew, after :meth:`kill` or by killing it now, and return when the clients are connected again.

        It is another process to its callers: it knows nothing of the runs, answers and refs of the one before.
        """
        if self._server is not None:
            await self.kill()
        await self._start()
        await self.link.up()
        await self._reached()

    async def _start(self) -> None:
        server = PeerServer(self._node_id, token=self.token, settings=self._settings, registry=self._registry)
        self._serving = AsyncExitStack()
        self._server = await self._serving.enter_async_context(server.serving(self._listen))

    async def _stop(self) -> None:
        """Close the clients and the link, then drain the server, if it lives."""
        for client in self._clients:
            await client.aclose()
        await self.link.stop()
        await self._serving.aclose()

    async def _reached(self) -> None:
        until = time.monotonic() + REACHED_SECS  # real time: the loop's may stand still
        for client in self._clients:
            while True:
                try:
                    await client.describe()
                except TransportError:
                    if time.monotonic() > until:
                        raise
                    await asyncio.to_thread(time.sleep, 0.005)
                except ValidationError:  # the test closed it
                    break
                else:
                    break


class _KilledError(Exception):
    """Ends a server's block at once."""


@asynccontextmanager
async def peers(
    steps: Iterable[StepLike] | None = None,
    *,
    workflows: Sequence[Workflow] = (),
    registry: Registry | None = None,
    with_token: bool = True,
    server_node_id: str = "node-b",
    client_node_id: str = "node-a",
    settings: ServerSettings = QUICK,
    data_class: str | None = None,
    lane: LaneMode = "never",
) -> AsyncIterator[Peers]:
    """Serve steps inside the block, on a Unix socket in a folder of its own, with a client connected.

    Args:
        steps: What to serve: functions decorated with ``@step``, ids, or definitions.
        workflows: Workflows that callers may run whole, by name. Without steps or workflows given, all that *registry* holds
            is served, now and later.
        registry: Where steps are looked up; by default the process-wide one.
        with_token: Make a token for this block, which both ends have. False: the environment's, or none.
        server_node_id: What the server is called.
        client_node_id: What the client is called.
        settings: The server's limits and times; by default it drains for 2 s at the most.
        data_class: What the link stamps, as the port of a sidecar does: runs with data of that class may call through it.
        lane: How the client carries calls, and those of :meth:`Peers.connect`. A link's faults are for calls, and one call by a
            lane is none of its own; without faults "auto" is what users have.

    Raises:
        UnknownStepError: An id that is not registered.
        ValidationError: A function that is not registered, or another argument is not usable.
    """
    source = registry if registry is not None else DEFAULT_REGISTRY
    served = source
    if steps is not None or workflows:
        served = Registry()
        for item in steps or ():
            served.add(definition_of(item, source))
        for workflow in workflows:
            served.register_workflow(workflow)
    token = secrets.token_urlsafe(32) if with_token else None
    with tempfile.TemporaryDirectory(prefix="blazen-") as folder:
        pair = Peers(
            served, Path(folder), node_id=server_node_id, token=token, settings=settings, data_class=data_class, lane=lane
        )
        await pair.link.start()
        try:
            await pair._start()
            pair.client = await pair.connect(client_node_id)
            yield pair
        except BaseException:
            await pair.kill()  # no time for runs to finish, and whatever waits for them ends
            raise
        finally:
            await pair._stop()
