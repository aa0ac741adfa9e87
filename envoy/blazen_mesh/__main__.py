from blazen_mesh.cli import entry

entry()
