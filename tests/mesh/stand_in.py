"""A peer in a process of its own, for tests that kill or supervise one: ``stand_in.py [serve ...] --listen ADDRESS ...``.

It takes the arguments that ``blazen-mesh up`` gives a peer, writes a line for each call as it begins, and answers after as
many seconds as the request says. ``MISBEHAVE`` in its environment makes it fail to start (``exit``) or ignore SIGTERM
(``deaf``).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def answer(request: bytes, _: Any) -> bytes:
    say(f"call begins {request.decode()}")
    await asyncio.sleep(float(request))
    return request


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", nargs="?")
    for name in ("app", "node-id", "listen", "sidecar-proof-file", "policy"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--require-identity", action="store_true")
    options = parser.parse_args()
    if os.environ.get("MISBEHAVE") == "exit":
        sys.exit("stand-in: cannot start")
    server = grpc.aio.server()
    handlers = {name: grpc.unary_unary_rpc_method_handler(answer) for name in ("InvokeSubWorkflow", "DerefSessionRef")}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("blazen.peer.v1.BlazenPeer", handlers),))
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    server.add_insecure_port(options.listen)
    await server.start()
    stop = asyncio.Event()

    def asked() -> None:
        if os.environ.get("MISBEHAVE") == "deaf":
            return
        if stop.is_set():  # as a real peer takes it
            os._exit(3)
        stop.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked)
    say(f"stand-in {options.node_id} serves, token file {os.environ.get('BLAZEN_PEER_TOKEN_FILE')}")
    await stop.wait()
    await health.enter_graceful_shutdown()
    await server.stop(10)
    say("stand-in stopped in order")


if __name__ == "__main__":
    asyncio.run(main())
