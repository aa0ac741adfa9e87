"""The same for programs without a loop of their own; SIGTERM and Ctrl-C drain it.

Run it: python -m examples.reference.blocking_server [LISTEN_ADDRESS]
"""

import sys

import examples.analyst  # noqa: F401 (importing it registers the steps)
from blazen_peer import PeerServer


def main(listen_address: str = "127.0.0.1:50051") -> None:
    server = PeerServer("node-b")
    server.serve_blocking(listen_address)


if __name__ == "__main__":
    main(*sys.argv[1:])
