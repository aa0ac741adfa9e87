"""Where the microseconds of a call by a lane go, in one process and without gRPC: each line leaves out what the one above adds.

    python bench/call_parts.py [--json] [--in-flight 1,64] [--repeats N]

The server's lane is fed messages as gRPC hands them over, the client's is answered from memory. Of each line the least of the
repeats counts, so a busy machine spoils little; collections are rare, as ``blazen-peer serve`` has them. What gRPC and the
kernel take beside this is the CPU of ``bench/remote_call.py`` less these numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import uvloop
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import echo_app
from bench.remote_call import INPUT, STEPS, TEXT, TOKEN
from blazen_peer import PeerClient, PeerServer, ServerSettings, StartEvent
from blazen_peer.auth import AUTHORIZATION
from blazen_peer.config import MAX_MESSAGE_BYTES
from blazen_peer.identity import ANONYMOUS, Caller
from blazen_peer.runtime.invocations import Invocations
from blazen_peer.runtime.ref_serving import RefServing
from blazen_peer.runtime.refs import RefTable
from blazen_peer.runtime.registry import DEFAULT_REGISTRY
from blazen_peer.runtime.run_refs import RunRefs
from blazen_peer.transport.gate import ADMITTED
from blazen_peer.transport.proto import lane_pb2
from blazen_peer.wire import SubWorkflowRequest, SubWorkflowResponse
from blazen_peer.wire.metadata import CallMetadata, PeerTraits

CALLS = 4096
REQUEST = SubWorkflowRequest("bench", tuple(STEPS), INPUT.encode(), 30).encode()
ANSWER = SubWorkflowResponse(result_json=json.dumps({"text": TEXT}).encode()).encode()

Measured = Callable[[int], Awaitable[float]]


@dataclass(frozen=True)
class Part:
    """What one line of the table costs, in microseconds a call."""

    end: str
    what: str
    in_flight: int
    us: float


class Stream:
    """A lane's stream in memory: ``read`` gives what was put in, ``write`` hands on what comes out."""

    def __init__(self, taken: Callable[[bytes], None]) -> None:
        self.waiting: asyncio.Queue[bytes] = asyncio.Queue()
        self._taken = taken

    async def read(self) -> bytes:
        return await self.waiting.get()

    async def write(self, raw: bytes) -> None:
        self._taken(raw)

    async def initial_metadata(self) -> tuple[()]:
        return ()

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ((AUTHORIZATION, f"Bearer {TOKEN}"),)

    def cancel(self) -> None:
        pass


class Constant:
    """Stands where the calls of a server stand, and answers at once."""

    untaken = 0

    def begin(self, payload: bytes, caller: Caller, metadata: CallMetadata) -> Constant:
        return self

    def on_answer(self, tell: Callable[[bytes], None]) -> bool:
        tell(ANSWER)
        return True


@asynccontextmanager
async def served(service: Any) -> AsyncIterator[Measured]:
    """Give what measures a server's lane over *service*: messages in, messages out."""
    server = PeerServer("analyst", token=TOKEN)
    left = 0
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def taken(raw: bytes) -> None:
        nonlocal left
        left -= len(lane_pb2.LaneResponse.FromString(raw).answers)
        if not left and not done.done():
            done.set_result(None)

    stream: Any = Stream(taken)
    async with server.serving():  # for its gate and its lanes: nobody connects
        server._lanes._service = service
        ADMITTED.set(server._lanes._admit(stream.invocation_metadata(), stream))
        stream.waiting.put_nowait(lane_pb2.LaneRequest(hello=lane_pb2.Hello(version=1)).SerializeToString())
        lane = asyncio.create_task(server._lanes.serve(None, stream))
        lane.add_done_callback(lambda _: done.done() or done.set_result(None))  # it is not to end: whoever waits says why
        number = 0

        async def measured(in_flight: int) -> float:
            nonlocal left, done, number
            messages = []
            for _ in range(CALLS // in_flight):
                message = lane_pb2.LaneRequest()
                for _ in range(in_flight):
                    number += 1
                    message.calls.add(id=number, envelope=REQUEST, invocation_id=f"0123abcd~{number:024x}")
                messages.append(message.SerializeToString())
            began = time.process_time()
            for raw in messages:
                left, done = in_flight, asyncio.get_running_loop().create_future()
                stream.waiting.put_nowait(raw)
                await done
                if lane.done():
                    lane.result()
            return time.process_time() - began

        yield measured
        stream.waiting.put_nowait(grpc.aio.EOF)


async def invocations() -> tuple[Invocations, RefTable]:
    """Return the calls of a server, as ``PeerServer`` makes them."""
    settings, loop = ServerSettings(), asyncio.get_running_loop()
    table = RefTable(settings, node_id="analyst", clock=loop.time, epoch_ms=lambda: 0, new_uuid=_no_uuid, admits=None)
    return Invocations("analyst", DEFAULT_REGISTRY, settings, RefServing(table, max_message_bytes=1 << 20)), table


def _no_uuid() -> Any:
    raise AssertionError  # no step here puts a ref


async def runs(table: RefTable) -> Measured:
    """Return what measures the runs alone."""
    workflow = DEFAULT_REGISTRY.workflow("bench")
    assert workflow is not None

    async def measured(in_flight: int) -> float:
        began = time.process_time()
        for _ in range(CALLS // in_flight):
            begun = [workflow.start({"text": TEXT}, timeout_secs=30, refs=RunRefs(table, ANONYMOUS)) for _ in range(in_flight)]
            for run in begun:
                await run.wait()
        return time.process_time() - began

    return measured


async def steps(in_flight: int) -> float:
    """Measure the steps' own functions and the events that they make."""
    began = time.process_time()
    for _ in range(CALLS):
        await echo_app.second(await echo_app.first(StartEvent(data={"text": TEXT})))
    return time.process_time() - began


async def asked() -> tuple[Measured, Measured]:
    """Return what measures a client's calls whole, and its lane alone."""

    def taken(raw: bytes) -> None:
        message, answer = lane_pb2.LaneRequest.FromString(raw), lane_pb2.LaneResponse()
        if message.HasField("hello"):
            answer.welcome.CopyFrom(lane_pb2.Welcome(instance_id="x", max_open_frames=4096, max_frame_bytes=1 << 18))
        for call in message.calls:
            answer.answers.add(id=call.id, envelope=ANSWER)
        stream.waiting.put_nowait(answer.SerializeToString())

    stream: Any = Stream(taken)
    client: Any = PeerClient("http://127.0.0.1:9", "intake", TOKEN, MAX_MESSAGE_BYTES, lane="always")
    client._traits = PeerTraits(300_000, 3_600_000, "x", MAX_MESSAGE_BYTES, None, 1)
    client._begin_lane = lambda _: lambda *_: stream
    await client.run_remote_workflow("bench", STEPS, INPUT, 30)

    def of(call: Callable[[], Awaitable[object]]) -> Measured:
        async def measured(in_flight: int) -> float:
            left = CALLS

            async def caller() -> None:
                nonlocal left
                while left > 0:
                    left -= 1
                    await call()

            began = time.process_time()
            await asyncio.gather(*(caller() for _ in range(in_flight)))
            return time.process_time() - began

        return measured

    lane, about = client._lanes_here().least(), CallMetadata("0123abcd~0123456789abcdef01234567")
    return (
        of(lambda: client.run_remote_workflow("bench", STEPS, INPUT, 30)),
        of(lambda: lane.invoke(REQUEST, about, 30.0)),
    )


async def bench(numbers: list[int], repeats: int) -> list[Part]:
    """Measure all lines in turns."""
    async with AsyncExitStack() as stack:
        calls, table = await invocations()
        whole, lane = await asked()
        lines: list[tuple[str, str, Measured]] = [
            ("server", "lane and call together", await stack.enter_async_context(served(calls))),
            ("server", "the lane alone: messages, gate, frames", await stack.enter_async_context(served(Constant()))),
            ("server", "the run alone, two steps", await runs(table)),
            ("server", "the steps' own functions and events", steps),
            ("client", "lane and call together", whole),
            ("client", "the lane alone: messages, futures", lane),
        ]
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 20, 20)
        least: dict[tuple[str, str, int], float] = {}
        for _ in range(repeats):
            for in_flight in numbers:
                for end, what, measured in lines:
                    us = await measured(in_flight) / CALLS * 1e6
                    key = end, what, in_flight
                    least[key] = min(us, least.get(key, us))
    return [Part(*key, us=us) for key, us in least.items()]


def show(parts: list[Part], numbers: list[int]) -> None:
    """Print the table."""
    table = Table(title="A call by a lane without gRPC (microseconds a call)")
    for column in ("end", "what"):
        table.add_column(column)
    for number in numbers:
        table.add_column(f"{number} in flight", justify="right")
    found = {(part.end, part.what, part.in_flight): part.us for part in parts}
    for end, what in dict.fromkeys((part.end, part.what) for part in parts):
        table.add_row(end, what, *(f"{found[end, what, number]:.1f}" for number in numbers))
    Console(width=110).print(table)


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the lines as JSON")
    parser.add_argument("--in-flight", default="1,64", help="numbers of calls in flight, by default 1,64")
    parser.add_argument("--repeats", type=int, default=7, help="how often each line is measured, by default 7")
    args = parser.parse_args()
    numbers = [int(number) for number in args.in_flight.split(",")]
    parts = uvloop.run(bench(numbers, args.repeats))
    if args.json:
        print(json.dumps([asdict(part) for part in parts], indent=2))
    else:
        show(parts, numbers)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
