"""The runtime: performs what the engine commands, with asyncio tasks and threads; and the registry of steps and workflows."""

from blazen_peer.engine import Retry, StepDefinition, WorkflowWarning
from blazen_peer.runtime.composition import RemoteRunner, local_step, parallel, remote_step
from blazen_peer.runtime.context import Context, RunInfo, current_run
from blazen_peer.runtime.definition import define_step
from blazen_peer.runtime.refs import RefLifetime, RemoteRef
from blazen_peer.runtime.registry import (
    DEFAULT_REGISTRY,
    Registry,
    isolated_registry,
    register_workflow,
    registered_steps,
    step,
    unregister_step,
    unregister_workflow,
)
from blazen_peer.runtime.result import WorkflowResult
from blazen_peer.runtime.run import Run
from blazen_peer.runtime.threads import StepThreads, default_threads
from blazen_peer.runtime.workflow import DEFAULT_TIMEOUT_SECS, StepHandler, Workflow, WorkflowBuilder

__all__ = [
    "DEFAULT_REGISTRY",
    "DEFAULT_TIMEOUT_SECS",
    "Context",
    "RefLifetime",
    "Registry",
    "RemoteRef",
    "RemoteRunner",
    "Retry",
    "Run",
    "RunInfo",
    "StepDefinition",
    "StepHandler",
    "StepThreads",
    "Workflow",
    "WorkflowBuilder",
    "WorkflowResult",
    "WorkflowWarning",
    "current_run",
    "default_threads",
    "define_step",
    "isolated_registry",
    "local_step",
    "parallel",
    "register_workflow",
    "registered_steps",
    "remote_step",
    "step",
    "unregister_step",
    "unregister_workflow",
]
