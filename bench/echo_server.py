"""A bare grpc.aio server that answers any InvokeSubWorkflow with its own bytes: what gRPC alone costs in Python.

Run by bench/remote_call.py as: python bench/echo_server.py PORT
"""

from __future__ import annotations

import sys

import grpc

METHOD = "/blazen.peer.v1.BlazenPeer/InvokeSubWorkflow"


async def main(port: int) -> None:
    """Serve until killed."""

    async def echo(request: bytes, _: object) -> bytes:
        return request

    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    _, service, method = METHOD.split("/")
    handler = grpc.method_handlers_generic_handler(service, {method: grpc.unary_unary_rpc_method_handler(echo)})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(int(sys.argv[1])))
