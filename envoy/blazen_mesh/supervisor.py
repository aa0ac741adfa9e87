"""The supervisor of one sidecar: from the files it needs to the last call in flight, whatever happens in between.

It renders the mesh file, shows the result to Envoy, waits for the identity, starts Envoy, and looks after it: a new mesh file
or day becomes a new configuration, a dead Envoy is started again, and one that is stuck is replaced by another that takes its
listening sockets over. At the end calls in flight are let go on first.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

from blazen_mesh.admin import AdminError
from blazen_mesh.child import OnLine
from blazen_mesh.discovery import PublishError
from blazen_mesh.generation import Generation, Generations, reason
from blazen_mesh.handover import ASK_SECS, Claim, NotYetError, Predecessor, hand_over, part, refuse
from blazen_mesh.mesh import MeshError
from blazen_mesh.ready import SOCKET_NAME
from blazen_mesh.render import ensure_secret
from blazen_mesh.settings import Settings
from blazen_mesh.sidecar import Sidecar, StartError, ended
from blazen_mesh.status import Status, StatusServer
from blazen_mesh.succession import Succession, Turn
from blazen_mesh.watch import IdentityWatch
from blazen_peer.errors import ValidationError

__all__ = ["Log", "Supervisor"]

BACKOFF_SECS = (0.1, 10.0)
FAILED_STARTS = 6
STEADY_SECS = 60.0
ASK_AGAIN_SECS = 0.2
_TELLING = "status"

Level = Literal["info", "warning", "error"]
Log = Callable[[Level, str], None]
"""Called with what happens to the sidecar: a sentence each, with more lines where Envoy said something."""


class Supervisor:
    """Runs one node's sidecar. :meth:`run` is its whole life.

    Attributes:
        status: How it is now; *on_status* is called with each change.
        serving: Set once it serves for the first time.
    """

    def __init__(
        self,
        generations: Generations,
        *,
        envoy: Path,
        log: Log,
        on_line: OnLine,
        on_status: Callable[[Status], None] = lambda _: None,
        settings: Settings | None = None,
    ) -> None:
        source = generations.source
        self._generations, self._settings = generations, settings or Settings()
        self._log, self._on_status = log, on_status
        self._home = Path(source.paths.config_dir)
        self.status = Status(source.node)
        self._claim = Claim(self._home)
        self._server = StatusServer(self._home / SOCKET_NAME, lambda: self.status, self._asked_for_it)
        self._identity = IdentityWatch(Path(source.paths.identity_dir))
        self._envoys = Succession(f"{source.node} sidecar", source.paths, envoy=envoy, on_line=on_line, settings=self._settings)
        self._started_from, self._served_since, self._deaths = "", 0.0, 0
        self._problems: dict[str, str] = {}
        self._replace_because: str | None = None
        self._wake, self.serving = asyncio.Event(), asyncio.Event()
        self._handing = self._taken_over = False
        self._changing = asyncio.Lock()  # one at a time: a look, a replacement, a hand-over

    async def run(self, stop: asyncio.Event) -> None:
        """Hold the sidecar until *stop* is set, then drain and end it; return early when a successor has taken it over.

        Raises:
            MeshError, ValidationError, PublishError: The mesh file is wrong at the start, or Envoy refuses what it gives.
            StartError: There was no identity in time, or Envoy does not start, or keeps dying.
        """
        stopping = asyncio.create_task(stop.wait())
        try:
            if await self._unless(stopping, self._begin()):
                await self._tend(stopping)
        finally:
            stopping.cancel()
            await self._end()

    def replace_envoy(self, why: str = "it was asked for") -> None:
        """Let another Envoy take over from the running one, without a closed port; calls in flight may finish."""
        self._replace_because = why
        self._wake.set()

    def kill(self) -> None:
        """End every Envoy at once, with nothing finished."""
        self._envoys.kill()

    async def prepare(self) -> None:
        """Do what of :meth:`run` comes before the identity is there: put files in place, the peer's among them."""
        if self._claim.take():
            await self._server.start()
        elif not self._settings.take_over:
            raise StartError(f"another supervisor runs in {self._home}: end it first")
        await self._generations.put_in_place(_today(), None)
        ensure_secret(Path(self._generations.source.paths.proof_file))

    async def _begin(self) -> None:
        if self._generations.current is None:
            await self.prepare()
        await self._wait_for_identity()
        predecessor = None if self._claim.held else await self._ask()
        if predecessor is None:
            self._envoys.end_orphans()
            self._envoys.clean()
            await self._start(self._envoys.start(Turn.first()))
        else:
            await self._take_over(predecessor)
        self.serving.set()
        self._log("info", f"ready: generation {self.status.generation}, certificate {self.status.serial}")

    async def _wait_for_identity(self) -> None:
        node, secs, said = self.status.node, self._settings.wait_secs, None
        try:
            async with asyncio.timeout(secs):
                while missing := self._look_at_identity():
                    if missing != said:
                        self._log("info", f"waiting for a certificate: {missing}")
                        self._set(state="waiting", why_not=missing)
                        said = missing
                    await asyncio.sleep(min(0.2, self._settings.poll_secs))
        except TimeoutError:
            how = f"blazen-certs issue {node}, or on this node with blazen-certs join"
            raise StartError(f"no certificate after {secs:g} s: {said}; make one with {how}") from None

    async def _ask(self) -> Predecessor | None:
        """Ask the supervisor that has the sidecar for it, again and again while it cannot; None once there is none any more."""
        until, within_secs = time.monotonic() + self._settings.wait_secs, 2 * self._settings.drain_secs + ASK_SECS
        while not self._claim.take():
            try:
                return await Predecessor.ask(self._home / SOCKET_NAME, self.status.node, within_secs=within_secs)
            except NotYetError:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(ASK_AGAIN_SECS)
        await self._server.start()
        return None

    async def _take_over(self, predecessor: Predecessor) -> None:
        self._log("info", "taking over from the supervisor that runs here")
        try:
            await self._start(self._envoys.start(predecessor.turn.next()))
        except BaseException:
            predecessor.leave()
            raise
        await predecessor.dismiss()
        if not self._claim.take():
            raise StartError(f"yet another supervisor has {self._home}")
        await self._server.start()
        self._tell()

    async def _start(self, envoy: Coroutine[Any, Any, None]) -> None:
        generation = self._generation
        await envoy
        assert self._envoys.current is not None  # noqa: S101 - it has just been started
        self._started_from, self._served_since = generation.bootstrap, time.monotonic()
        self._identity.envoy_started()
        self._note("envoy", None)
        pid = self._envoys.current.child.pid
        self._set(state="serving", why_not=None, generation=generation.digest, envoy_pid=pid, starts=self._envoys.starts)

    async def _tend(self, stopping: asyncio.Task[Any]) -> None:
        while await self._something_to_do(stopping):
            await self._unless(stopping, self._act())

    async def _something_to_do(self, stopping: asyncio.Task[Any]) -> bool:
        """Wait for the next look, or for what cannot wait for it; return False at the end."""
        assert self._envoys.current is not None  # noqa: S101 - _begin has started it
        tasks = [asyncio.create_task(self._envoys.current.child.wait()), asyncio.create_task(self._wake.wait())]
        await asyncio.wait([stopping, *tasks], timeout=self._settings.poll_secs, return_when=asyncio.FIRST_COMPLETED)
        self._wake.clear()
        for task in tasks:
            task.cancel()
        return not (stopping.done() or self._taken_over)

    async def _act(self) -> None:
        async with self._changing:
            envoy = self._envoys.current
            if self._taken_over or envoy is None:
                return
            await (self._look(envoy) if envoy.child.returncode is None else self._revive(envoy))

    async def _look(self, envoy: Sidecar) -> None:
        """Do what the files and Envoy's own word call for."""
        await self._publish(envoy)
        broken = self._look_at_identity()
        unready = await envoy.admin.unready()
        stuck = None
        with contextlib.suppress(AdminError):  # unready says so already
            await self._identity.count(envoy.admin)
            stuck = None if broken else await self._identity.refused(envoy.admin)
        self._note("identity", f"{broken}; Envoy goes on with the one before: issue another" if broken else stuck)
        if unready != self.status.why_not:
            self._log("warning" if unready else "info", f"not ready: {unready}" if unready else "ready again")
        self._set(why_not=unready, generation=self._generation.digest)
        why, self._replace_because = self._replace_because, None
        if self._generation.bootstrap != self._started_from:
            why = why or "what it reads at its start has changed"
        if stuck and self._identity.stuck:
            why = why or stuck
        if why:
            await self._replace(why)

    async def _publish(self, envoy: Sidecar) -> None:
        today = _today()
        if not self._generations.due(today):
            return
        try:
            changed = await self._generations.put_in_place(today, envoy.admin)
        except AdminError as error:
            self._log("warning", f"Envoy was given another configuration and does not answer: {error}")
            return
        except (MeshError, ValidationError, PublishError) as error:
            self._note("mesh", f"{self._generations.source.mesh_file}: {reason(error)}; what was in place stays")
            return
        self._note("mesh", None)
        if changed:
            self._log("info", f"generation {self._generation.digest} is in place")

    async def _replace(self, why: str) -> None:
        self._log("info", f"another Envoy takes over: {why}")
        try:
            await self._start(self._envoys.follow())
        except StartError as error:
            # The old one serves on, but answers no question any more: try again until there is one that does.
            self._note("envoy", f"no other Envoy could take over: {reason(error)}")
            self._replace_because = why
        else:
            self._log("info", "the other Envoy serves; calls in flight end with the one before")

    async def _revive(self, dead: Sidecar) -> None:
        await dead.child.wait()
        if time.monotonic() - self._served_since > STEADY_SECS:
            self._deaths = 0
        text = ended(dead.child)
        for attempt in range(FAILED_STARTS):
            pause = min(BACKOFF_SECS[0] * 2**self._deaths, BACKOFF_SECS[1])
            self._deaths += 1
            self._log("error", f"{text}\nstarting it again in {pause:g} s")
            self._set(why_not="Envoy died and is being started again", envoy_pid=None)
            await self._envoys.stop()  # one that was on its way out may still hold the ports
            self._envoys.clean()
            await asyncio.sleep(pause)
            try:
                await self._start(self._envoys.start(Turn.first()))
            except StartError as error:
                if attempt == FAILED_STARTS - 1:
                    raise
                text = str(error)
            else:
                self._log("info", "Envoy serves again")
                return

    @property
    def _generation(self) -> Generation:
        generation = self._generations.current
        assert generation is not None  # noqa: S101 - the first one comes before everything else
        return generation

    def _look_at_identity(self) -> str | None:
        name = str(self._generation.mesh.identity(self.status.node))
        problem = self._identity.look(name, crl=self._generation.mesh.crl, now=datetime.now(UTC))
        if newest := self._identity.newest:
            self._set(serial=f"{newest.serial:x}", expires=newest.expires.isoformat())
        return problem

    async def _asked_for_it(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.status.state != "serving" or self._handing:
            refuse(writer, f"it is {'handing over already' if self._handing else self.status.state}: try again in a moment")
            return
        self._handing = True
        self._log("info", "another supervisor asks for it")
        try:
            async with self._changing:
                await self._envoys.let_go()  # Envoy lets a third one in only once the first has gone
                self._envoys.know_ports()
                within_secs = 2 * self._settings.start_secs + ASK_SECS  # meanwhile a dead Envoy is not started again
                if await hand_over(self.status.node, self._envoys.turn, reader, writer, within_secs=within_secs):
                    self._taken_over = True
                    self._log("info", "another supervisor has taken over; calls in flight end here")
                    await self._server.stop(keep_name=True)
                    self._claim.release()
                    part(writer)
                else:
                    self._envoys.end_orphans()  # Envoy lets no other one in beside it
                    self._replace_because = "another supervisor began to take over, and went away"
                    self._log("warning", self._replace_because)
        finally:
            self._handing = False
            self._wake.set()

    async def _end(self) -> None:
        try:
            if self._handing:  # whoever is about to take over shall find what it has asked for
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.start_secs), self._changing:
                        pass
            if self._taken_over:
                await self._envoys.leave()
            elif self._envoys.current is not None:
                self._log("info", f"draining: calls in flight have {self._settings.drain_secs:g} s")
                self._set(state="draining", why_not="it is being stopped")
                idle = await self._envoys.drain()
                await self._envoys.let_go()
                if not idle:
                    self._log("warning", "calls that are still in flight are cut off")
                await self._envoys.stop()
        finally:
            self.kill()
            if self._claim.held:
                self._set(state="draining", why_not="it has ended", envoy_pid=None)
                await self._server.stop()
                self._envoys.clean()
                self._claim.release()

    def _note(self, about: str, problem: str | None) -> None:
        """Say *problem* once, and keep it in the status until it is None again."""
        if problem == self._problems.get(about):
            return
        if problem:
            self._problems[about] = problem
            self._log("warning", problem)
        else:
            self._log("info", f"over: {self._problems.pop(about)}")
        self._set(degraded=tuple(self._problems.values()))

    def _set(self, **changes: Any) -> None:
        status = replace(self.status, **changes)
        if status != self.status or _TELLING in self._problems:
            self.status = status
            self._tell()

    def _tell(self) -> None:
        if not self._claim.held:  # it is for another supervisor to say
            return
        try:
            self._on_status(self.status)
        except OSError as error:  # a full disk, say: no reason to end what serves
            self._note(_TELLING, f"cannot say how it is: {error}")
        else:
            self._note(_TELLING, None)

    async def _unless(self, stopping: asyncio.Task[Any], work: Coroutine[Any, Any, None]) -> bool:
        """Do *work* unless *stopping* comes first; return whether it was done."""
        task = asyncio.create_task(work)
        await asyncio.wait([stopping, task], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, StartError):
            await task
        return False


def _today() -> date:
    return datetime.now(UTC).date()
