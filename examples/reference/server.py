"""A peer that serves steps. Run it: python -m examples.reference.server [LISTEN_ADDRESS]"""

import asyncio
import signal
import sys

import examples.analyst  # noqa: F401 (importing it registers the steps)
from blazen_peer import PeerServer


async def main(listen_address: str = "127.0.0.1:50051") -> None:
    server = PeerServer("node-b")
    # Signals are the program's own affair: here SIGTERM lets the runs in progress finish.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: asyncio.ensure_future(server.drain(lame_duck_secs=0)))
    await server.serve(listen_address)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
