"""What a peer says of itself: its steps with what they accept and emit, its workflows, its limits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Final

from pydantic.errors import PydanticInvalidForJsonSchema

from blazen_peer.config import ServerSettings
from blazen_peer.events import Event
from blazen_peer.policy_file import PolicyState
from blazen_peer.runtime.registry import Registry
from blazen_peer.runtime.workflow import Workflow
from blazen_peer.transport.proto import control_pb2
from blazen_peer.wire import ENVELOPE_VERSION

__all__ = ["describe"]

DISTRIBUTION: Final = "blazen-python-peer"


def describe(
    node_id: str,
    instance_id: str,
    registry: Registry,
    settings: ServerSettings,
    workflows: Mapping[str, Workflow] = MappingProxyType({}),
    policy: PolicyState | None = None,
    lanes: control_pb2.Lanes | None = None,
) -> control_pb2.DescribeResponse:
    """Return the description of a peer as it stands now; *workflows* are the server's own, before the registry's."""
    named = {workflow.name: workflow for workflow in registry.workflows()} | dict(workflows)
    return control_pb2.DescribeResponse(
        node_id=node_id,
        version=_version(),
        envelope_version=ENVELOPE_VERSION,
        instance_id=instance_id,
        steps=[
            control_pb2.Step(
                id=step.id,
                accepts=_shapes(step.accepts, step.accepted_classes.values()),
                emits=_shapes(step.emits or (), step.emitted_classes),
            )
            for step in registry.steps()
        ],
        workflows=[
            control_pb2.Workflow(
                name=workflow.name,
                step_ids=[step.id for step in workflow.steps],
                data_class=workflow.data_class if isinstance(workflow.data_class, str) else "",
                data_class_by_input=callable(workflow.data_class),
            )
            for _, workflow in sorted(named.items())
        ],
        limits=control_pb2.Limits(
            max_message_bytes=settings.max_message_bytes,
            max_runs=settings.max_runs,
            default_timeout_ms=round(settings.default_timeout_secs * 1000),
            max_timeout_ms=round(settings.max_timeout_secs * 1000),
            max_queued_runs=settings.max_queued_runs,
            max_run_refs=settings.max_run_refs,
            max_run_ref_bytes=settings.max_run_ref_bytes,
            max_refs=settings.max_refs,
            max_ref_bytes=settings.max_ref_bytes,
            ref_lease_ms=round(settings.ref_lease_secs * 1000),
        ),
        policy=None
        if policy is None
        else control_pb2.LoadedPolicy(
            digest=policy.digest,
            loaded_at_epoch_ms=round(policy.loaded_at * 1000),
            data_classes=policy.classes,
            problem=policy.problem or "",
        ),
        lanes=lanes,
    )


def _shapes(event_types: Iterable[str], classes: Iterable[type[Event]]) -> list[control_pb2.EventShape]:
    """Return one shape for each class, and one without a schema for each name that no class declares."""
    typed = [(cls.event_type, _schema(cls)) for cls in classes]
    named = {name for name, _ in typed}
    untyped = [(name, "") for name in event_types if name not in named]
    return [control_pb2.EventShape(event_type=name, json_schema=schema) for name, schema in (*typed, *untyped)]


def _schema(cls: type[Event]) -> str:
    """Return the JSON Schema of *cls*; empty for a class that declares nothing or holds what JSON Schema cannot say."""
    if not cls.model_fields:
        return ""
    try:
        return json.dumps(cls.model_json_schema(), separators=(",", ":"))
    except PydanticInvalidForJsonSchema:
        return ""


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"
