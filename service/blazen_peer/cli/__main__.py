from blazen_peer.cli.main import entry

entry()
