"""The two ends that bench/streaming.py reads from: a peer whose step emits, and a bare grpc.aio stream of the same bytes.

Run as: python bench/stream_server.py ours|bare PORT
"""

from __future__ import annotations

import asyncio
import sys

import grpc
import uvloop

from blazen_peer import Context, Event, PeerServer, ServerSettings, StartEvent, StopEvent, step
from blazen_peer.transport.proto.peer_pb2 import PostcardResponse
from blazen_peer.wire import SubWorkflowEvent

METHOD = "/blazen.peer.v1.BlazenPeer/StreamSubWorkflowEvents"
TEXT = "x" * 100
TURN = 64  # events between two turns for the loop


class Progress(Event, event_type="bench::Progress"):
    """What is emitted."""

    text: str


@step("bench::emit")
async def emit(event: StartEvent, ctx: Context) -> StopEvent:
    """Emit as many events as the input says."""
    progress = Progress(text=TEXT)
    for n in range(event.data):
        ctx.emit(progress)
        if n % TURN == 0:
            await asyncio.sleep(0)
    return StopEvent(result=event.data)


async def bare(port: int) -> None:
    """Write as many frames as the request's bytes say."""
    frame = SubWorkflowEvent(1, "bench::Progress", Progress(text=TEXT).data_json.encode()).encode()
    message = PostcardResponse(postcard_payload=frame).SerializeToString()

    async def stream(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        for _ in range(int(request)):
            await context.write(message)

    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    _, service, method = METHOD.split("/")
    handler = grpc.method_handlers_generic_handler(service, {method: grpc.unary_stream_rpc_method_handler(stream)})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    if sys.argv[1] == "bare":
        uvloop.run(bare(int(sys.argv[2])))
    else:  # a reader that is slower than the step must not meet a gap here: all of them are kept
        settings = ServerSettings(lame_duck_secs=0, stream_events=1_000_000, stream_bytes=1 << 30)
        uvloop.run(PeerServer("bench", settings=settings).serve(f"127.0.0.1:{sys.argv[2]}"))
