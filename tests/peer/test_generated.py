"""The generated protobuf code is what the ``.proto`` files give, and the service is Blazen's, name by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from blazen_peer.transport.proto import peer_pb2

PROTO = Path("blazen_peer") / "transport" / "proto"


def test_regenerating_changes_nothing(root: Path, tmp_path: Path) -> None:
    """protoc gives exactly the files that are there, as ``make proto`` calls it."""
    sources = sorted(str(path.relative_to(root)) for path in (root / "service" / PROTO).glob("*.proto"))
    assert len(sources) == 3
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "-I",
            "service",
            f"--python_out={tmp_path}",
            f"--pyi_out={tmp_path}",
            *sources,
        ],
        cwd=root,
        check=True,
        timeout=60,
    )
    made = {path.name: path.read_text() for path in (tmp_path / PROTO).iterdir()}
    there = {path.name: path.read_text() for path in (root / "service" / PROTO).glob("*_pb2*")}
    assert made == there


def test_blazens_own_names() -> None:
    """Package, service, methods, kinds and field numbers are those of the reference: other clients find us by them."""
    service = peer_pb2.DESCRIPTOR.services_by_name["BlazenPeer"]
    assert service.full_name == "blazen.peer.v1.BlazenPeer"
    kinds = {method.name: (method.client_streaming, method.server_streaming) for method in service.methods}
    assert kinds == {
        "InvokeSubWorkflow": (False, False),
        "StreamSubWorkflowEvents": (False, True),
        "DerefSessionRef": (False, False),
        "ReleaseSessionRef": (False, False),
    }
    assert {method.input_type.full_name for method in service.methods} == {"blazen.peer.v1.PostcardRequest"}
    assert {method.output_type.full_name for method in service.methods} == {"blazen.peer.v1.PostcardResponse"}
    assert peer_pb2.PostcardRequest(postcard_payload=b"\x01").SerializeToString() == b"\x0a\x01\x01"
    assert peer_pb2.PostcardResponse(postcard_payload=b"\x01").SerializeToString() == b"\x0a\x01\x01"
