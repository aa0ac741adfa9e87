"""Connect to a peer. Run it: python -m examples.reference.client [ADDRESS]"""

import sys

from blazen_peer import PeerClient


def main(address: str = "http://127.0.0.1:50051") -> None:
    client = PeerClient.connect(address=address, client_node_id="node-a")
    print(f"connected as: {client.node_id}")
    client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
