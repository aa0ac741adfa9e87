"""One supervisor takes a running sidecar over from another, so that not even the supervisor's own restart closes a port.

A configuration directory belongs to one supervisor: it holds a lock on it. A second one asks the first for the number of its
Envoy, starts the Envoy that follows it, and says ``done`` once that serves; until then the first one can go on alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
from http import HTTPStatus
from pathlib import Path

from blazen_mesh.sidecar import StartError
from blazen_mesh.status import answer
from blazen_mesh.succession import Turn

__all__ = ["ASK_SECS", "Claim", "NotYetError", "Predecessor", "hand_over", "part", "refuse"]

DONE, FAREWELL = b"done\n", b"bye\n"
ASK_SECS = 10.0


class NotYetError(StartError):
    """The sidecar cannot be had now, and perhaps in a moment."""


class Claim:
    """The lock on a configuration directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "sidecar.lock"
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether it is ours."""
        return self._descriptor is not None

    def take(self) -> bool:
        """Take it, unless another process has it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Leave it to others."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Predecessor:
    """The supervisor that has the sidecar now."""

    def __init__(self, turn: Turn, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.turn, self._reader, self._writer = turn, reader, writer

    @classmethod
    async def ask(cls, socket_path: Path, node: str, *, within_secs: float) -> Predecessor:
        """Ask it to hand its sidecar over; from now on it changes nothing.

        Args:
            node: Whose sidecar it must be.
            within_secs: How long it may take: an Envoy that it has just replaced has to be gone first.

        Raises:
            NotYetError: It does not answer, or is not able to now.
            StartError: It runs another node's sidecar.
        """
        who = f"another supervisor runs in {socket_path.parent}, and "
        try:
            async with asyncio.timeout(within_secs):
                reader, writer = await asyncio.open_unix_connection(socket_path)
                writer.write(b"POST /hand-over HTTP/1.1\r\nHost: sidecar\r\n\r\n")
                head = (await reader.readuntil(b"\r\n\r\n")).split()
                body = json.loads(await reader.readline())
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
            raise NotYetError(f"{who}it does not answer ({error or 'too slow'}): end it first") from None
        if int(head[1]) != HTTPStatus.OK:
            writer.close()
            raise NotYetError(f"{who}it does not hand over: {body['why']}")
        if body["node"] != node:
            writer.close()
            raise StartError(f"{who}it is the one of {body['node']}: give {node} a directory of its own")
        return cls(Turn(body["base_id"], body["epoch"]), reader, writer)

    async def dismiss(self) -> None:
        """Tell it that we serve; when this returns, its lock and its socket are ours to take."""
        with contextlib.suppress(OSError, TimeoutError):  # a dead one has let go of both
            async with asyncio.timeout(ASK_SECS):
                self._writer.write(DONE)
                await self._reader.readline()
        self.leave()

    def leave(self) -> None:
        """Go without having taken over: it goes on."""
        self._writer.close()


async def hand_over(
    node: str, turn: Turn, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, within_secs: float
) -> bool:
    """Answer a successor with *node* and *turn*, and wait until it serves, has gone away or is too slow; return whether it
    serves."""
    answer(writer, HTTPStatus.OK, json.dumps({"node": node, "base_id": turn.base_id, "epoch": turn.epoch}))
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(within_secs):
            return await reader.readline() == DONE
    return False


def refuse(writer: asyncio.StreamWriter, why: str) -> None:
    """Answer a successor that it has to wait, and for what."""
    answer(writer, HTTPStatus.CONFLICT, json.dumps({"why": why}))


def part(writer: asyncio.StreamWriter) -> None:
    """Tell the successor that the lock and the socket are its own to take."""
    writer.write(FAREWELL)
