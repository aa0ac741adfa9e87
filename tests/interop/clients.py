"""The real Blazen's clients in processes of their own, driven by JSON lines: a command in, its answer out, in order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

ANSWER_SECS = 60.0
LINE_BYTES = 64 * 1024 * 1024


class LineProcess:
    """A program that answers each line on its standard input with one on its standard output."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, *argv: str, environ: Mapping[str, str] | None = None) -> Self:
        """Start it; its first answer is connect's."""
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, limit=LINE_BYTES, env=environ))

    async def send(self, command: Any) -> None:
        """Give it one command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        await self.process.stdin.drain()

    async def answer(self) -> Any:
        """Return its next answer."""
        assert self.process.stdout is not None
        async with asyncio.timeout(ANSWER_SECS):
            line = await self.process.stdout.readline()
        assert line, "the client ended"
        return json.loads(line)

    async def ask(self, command: Any) -> Any:
        """Give it one command and return the answer."""
        await self.send(command)
        return await self.answer()

    async def close(self) -> None:
        """End it."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()


class RustClient(LineProcess):
    """``rust/src/bin/interop-client.rs``; it makes one call at a time."""

    async def invoke(self, steps: Sequence[str], document: Any = None, **options: Any) -> Any:
        """Have it call *steps*; *options* are those of :func:`invocation`."""
        return await self.ask(invocation(steps, document, **options))

    async def raw(self, method: str, payload: bytes, metadata: Mapping[str, str] | None = None) -> Any:
        """Send *payload* by its generated client: ``{"payloads": ...}`` or ``{"status": {"code": ..., "text": ...}}``."""
        return await self.ask({"do": "raw", "method": method, "payload": list(payload), "metadata": dict(metadata or {})})


def invocation(
    steps: Sequence[str],
    document: Any = None,
    *,
    input_json: str | None = None,
    workflow: str = "interop",
    timeout_secs: int | None = None,
    version: int = 1,
) -> dict[str, Any]:
    """Return the command for one invocation, as the Rust client wants it."""
    text = json.dumps(document) if input_json is None else input_json
    call = {"workflow": workflow, "steps": list(steps), "input": text, "timeout_secs": timeout_secs, "version": version}
    return {"do": "invoke", **call}
