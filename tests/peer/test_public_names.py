"""What users type: the list of public names, and that each says what it does."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import blazen_peer

NAMES = [
    "BlazenError",
    "Caller",
    "CancelOutcome",
    "CancelReport",
    "ClientTls",
    "Context",
    "EncodeError",
    "EnvelopeVersionError",
    "Event",
    "InvocationConflictError",
    "InvocationNotFoundError",
    "OverloadedError",
    "PeerClient",
    "PeerError",
    "PeerServer",
    "PermissionDeniedError",
    "RefLifetime",
    "RefNotFoundError",
    "RemoteRef",
    "RemoteStream",
    "Retry",
    "ServerSettings",
    "ServerTls",
    "StartEvent",
    "StopEvent",
    "TlsError",
    "TransportError",
    "UnauthenticatedError",
    "UnknownStepError",
    "ValidationError",
    "Workflow",
    "WorkflowBuilder",
    "WorkflowError",
    "WorkflowResult",
    "WorkflowWarning",
    "isolated_registry",
    "load_client_tls",
    "load_server_tls",
    "local_step",
    "parallel",
    "register_workflow",
    "registered_steps",
    "remote_step",
    "step",
    "unregister_step",
    "unregister_workflow",
]
KINDS = {
    "BlazenError": "Error",
    "ValidationError": "Validation",
    "WorkflowError": "Workflow",
    "PeerError": "Protocol",
    "TransportError": "Transport",
    "TlsError": "Tls",
    "UnknownStepError": "UnknownStep",
    "EnvelopeVersionError": "EnvelopeVersion",
    "EncodeError": "Encode",
    "UnauthenticatedError": "Unauthenticated",
    "PermissionDeniedError": "PermissionDenied",
    "OverloadedError": "Overloaded",
    "RefNotFoundError": "RefNotFound",
    "InvocationConflictError": "InvocationConflict",
    "InvocationNotFoundError": "InvocationNotFound",
}
SIGNATURES = {
    "PeerClient.connect": "address client_node_id *token *timeout_secs *max_message_bytes *tls *data_class *peers_file *lane",
    "PeerClient.connect_async": (
        "address client_node_id *token *timeout_secs *max_message_bytes *tls *data_class *peers_file *lane"
    ),
    "load_client_tls": "cert key ca *server_name",
    "load_server_tls": "cert key ca",
    "PeerClient.run_remote_workflow": "self workflow_name step_ids input_json timeout_secs *invocation_id *retries",
    "PeerClient.run_remote_workflow_blocking": ("self workflow_name step_ids input_json timeout_secs *invocation_id *retries"),
    "PeerClient.stream_remote_workflow": "self workflow_name step_ids input_json timeout_secs *invocation_id *retries",
    "PeerClient.attach": "self invocation_id *cursor *timeout_secs *retries",
    "PeerClient.cancel": "self invocation_id *grace_secs",
    "Context.put_ref": "self value *type_tag *serializer *lifetime *lease_secs *size_bytes",
    "Context.get_ref": "self ref",
    "Context.drop_ref": "self ref",
    "PeerClient.deref": "self ref deserializer *timeout_secs *max_bytes",
    "PeerClient.deref_blocking": "self ref deserializer *timeout_secs *max_bytes",
    "PeerClient.deref_chunks": "self ref *timeout_secs",
    "PeerClient.deref_to": "self ref file *timeout_secs",
    "PeerClient.deref_to_blocking": "self ref file *timeout_secs",
    "PeerClient.release": "self ref *timeout_secs",
    "PeerClient.release_blocking": "self ref *timeout_secs",
    "PeerClient.list_refs": "self *timeout_secs",
    "PeerClient.list_refs_blocking": "self *timeout_secs",
    "PeerClient.register_deserializer": "self type_tag deserializer",
    "PeerServer": "node_id *token *require_identity *sidecar_proof_file *insecure *settings *registry *workflows *policy "
    "*access_log",
    "PeerServer.serve": "self listen_address *tls",
    "PeerServer.serve_blocking": "self listen_address *tls",
    "PeerServer.serving": "self listen_address *tls",
    "PeerServer.drain": "self lame_duck_secs",
    "Workflow.run": "self input *timeout_secs",
    "Workflow": "name steps *registry *data_class",
    "WorkflowBuilder": "name *data_class",
    "Retry": "attempts delay_secs factor max_delay_secs jitter on",
    "WorkflowBuilder.add": "self step",
    "WorkflowBuilder.step": "self name accepts emits handler *timeout_secs *retry *max_concurrent",
    "local_step": "workflow *step_id *accepts *emits *timeout_secs *retry *max_concurrent",
    "parallel": "steps *mode *step_id *emits *sends *timeout_secs *retry *max_concurrent *registry",
    "remote_step": "client workflow_name step_ids *step_id *accepts *emits *timeout_secs *retries *retry *max_concurrent",
}


def test_the_list() -> None:
    """The public names are these: adding one is a decision, taking one away breaks users."""
    assert sorted(blazen_peer.__all__) == NAMES
    assert all(hasattr(blazen_peer, name) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_docstrings(name: str) -> None:
    """Every public thing, and every public method of it that is ours, says in its docstring what it does."""
    thing = getattr(blazen_peer, name)
    assert inspect.getdoc(thing), name
    assert "Args:" not in (inspect.getdoc(thing) or "").splitlines()[0]
    if inspect.isclass(thing):
        assert thing.__doc__, f"{name} has only the docstring of its parent"
        for member_name, member in vars(thing).items():
            ours = inspect.isroutine(member) or isinstance(member, property | classmethod | staticmethod)
            if ours and not member_name.startswith("_") and not member_name.startswith("model_"):
                function = getattr(member, "__func__", getattr(member, "fget", member))
                assert inspect.getdoc(function), f"{name}.{member_name}"


@pytest.mark.parametrize(("name", "parameters"), SIGNATURES.items())
def test_signatures(name: str, parameters: str) -> None:
    """The parameters that users write are called so and stand in this order; ``*``: by name alone."""
    thing = blazen_peer
    for part in name.split("."):
        thing = inspect.getattr_static(thing, part)
    function = getattr(thing, "__func__", thing)
    found = [("*" if p.kind is p.KEYWORD_ONLY else "") + p.name for p in inspect.signature(function).parameters.values()]
    assert [name for name in found if name != "cls"] == parameters.split()


def test_kinds() -> None:
    """Each error's ``kind`` is stable, and every public error has one of its own."""
    errors = [name for name in NAMES if name.endswith("Error")]
    assert {name: getattr(blazen_peer, name).kind for name in errors} == KINDS
    assert all(issubclass(getattr(blazen_peer, name), blazen_peer.BlazenError) for name in errors)


def test_every_module_says_what_it_is(root: Path) -> None:
    """Each module begins with a docstring."""
    for path in sorted((root / "service" / "blazen_peer").rglob("*.py")):
        if re.search(r"_pb2(_grpc)?\.py$", path.name):
            continue
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path


def test_importing_starts_nothing() -> None:
    """Importing the package starts no thread, opens no socket, sets no tracer provider, and says nothing."""
    code = (
        "import threading, sys, blazen_peer\n"
        "from opentelemetry import trace\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)\n"
        "assert not {'typer', 'rich', 'opentelemetry.sdk', 'yaml'} & set(sys.modules), 'heavy libraries'\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
