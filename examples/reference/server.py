"""A peer that serves steps. Run it: python -m examples.reference.server [LISTEN_ADDRESS]"""

import asyncio
import sys

import examples.analyst  # importing it registers the steps
from blazen_peer import PeerServer


async def main(listen_address: str = "127.0.0.1:50051") -> None:
    server = PeerServer("node-b")
    await server.serve(listen_address)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
