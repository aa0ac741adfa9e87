"""From the names in a request to the workflow that runs: looked up here, and with a policy only where the policy allows it.

Names come from the payload alone. Without a policy a caller may put any registered steps together under any name. With one, the
name is asked of the policy first, and then the steps must be those of the workflow that this server has under it: its own ones,
whatever else is registered under the same ids.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from blazen_peer.errors import EncodeError, UnknownStepError, ValidationError
from blazen_peer.identity import Caller
from blazen_peer.runtime.registry import Registry
from blazen_peer.runtime.rulings import Rulings
from blazen_peer.runtime.workflow import Workflow
from blazen_peer.wire import SubWorkflowRequest
from blazen_peer.wire.metadata import CallMetadata

__all__ = ["Resolution"]

MAX_RESOLVED: Final = 256  # workflows kept assembled, by name and step ids
MAX_KEPT_NAME_CHARS: Final = 1024  # a caller without a policy may call a workflow anything: 64 MiB of it is not kept


class Resolution:
    """What the names of a server's callers mean.

    Args:
        registry: Where step ids and workflow names are looked up; nothing else on the wire names code.
        workflows: The server's own workflows by name; they come before the registry's.
        rulings: The policy; None: everybody who is admitted may run everything.
    """

    def __init__(self, registry: Registry, workflows: Mapping[str, Workflow], rulings: Rulings | None) -> None:
        self._registry, self._workflows, self._rulings = registry, workflows, rulings
        self._resolved: OrderedDict[tuple[str, tuple[str, ...]], Workflow] = OrderedDict()
        self._generation = registry.generation

    def workflow(self, request: SubWorkflowRequest, caller: Caller, metadata: CallMetadata) -> Workflow:
        """Return the workflow that *request* asks for.

        Raises:
            PermissionDeniedError: The policy forbids it, or the steps are not of the workflow of that name.
            UnknownStepError, EncodeError: There is no such step or workflow; or a step is named twice.
        """
        name, step_ids = request.workflow_name, request.step_ids
        if self._rulings is not None:
            self._check(name, caller, metadata)
        if self._generation != self._registry.generation:
            self._resolved.clear()
            self._generation = self._registry.generation
        key = (name, step_ids)
        workflow = self._resolved.get(key)
        if workflow is None:
            workflow = self._assembled(name, step_ids) if self._rulings is None else self._part(name, step_ids, caller)
            if len(name) <= MAX_KEPT_NAME_CHARS:
                self._resolved[key] = workflow
            if len(self._resolved) > MAX_RESOLVED:
                self._resolved.popitem(last=False)
        return workflow

    def data_class(self, workflow: Workflow, document: object, caller: Caller, metadata: CallMetadata) -> str | None:
        """Return the class that a run of *workflow* with the input *document* has: with a policy what the call is stamped with.

        Raises:
            PermissionDeniedError: The input's own class is stricter than the stamp, or cannot be told.
        """
        if self._rulings is None and workflow.data_class is None:
            return None
        try:
            declared = workflow.class_of(document)
        except ValidationError as error:
            if self._rulings is None:
                raise EncodeError(str(error)) from error
            raise self._rulings.refusal(caller, workflow.name, str(error)) from error
        if self._rulings is None:
            return declared
        if callable(workflow.data_class):
            self._rulings.check_call(
                caller,
                workflow.name,
                laxest=declared,
                said_workflow=metadata.workflow,
                run_class=metadata.data_class,
            )
        return self._rulings.stamp_of(caller)

    def _check(self, name: str, caller: Caller, metadata: CallMetadata) -> None:
        """Ask the policy before any step is looked up; again, once the input is read, where that gives the class."""
        assert self._rulings is not None  # noqa: S101 - asked for with a policy alone
        named = self._named(name)
        declared = None if named is None else named.data_class
        self._rulings.check_call(
            caller,
            name,
            laxest=self._rulings.stamp_of(caller) if callable(declared) else declared,
            said_workflow=metadata.workflow,
            run_class=metadata.data_class,
        )

    def _named(self, name: str) -> Workflow | None:
        return self._workflows.get(name) or self._registry.workflow(name)

    def _assembled(self, name: str, step_ids: tuple[str, ...]) -> Workflow:
        named = self._named(name)
        if not step_ids:
            if named is None:
                raise UnknownStepError(f"unknown workflow `{name}`")
            return named
        try:
            data_class = None if named is None else named.data_class
            return Workflow.from_step_ids(name, step_ids, self._registry, data_class=data_class)
        except ValidationError as error:  # a step named twice
            raise EncodeError(str(error)) from None

    def _part(self, name: str, step_ids: tuple[str, ...], caller: Caller) -> Workflow:
        assert self._rulings is not None  # noqa: S101 - asked for with a policy alone
        named = self._named(name)
        if named is None:
            if step_ids:
                raise self._rulings.refusal(caller, name, "no workflow of that name is registered here, so no step is of it")
            raise UnknownStepError(f"unknown workflow `{name}`")
        if not step_ids:
            return named
        part = named.part(step_ids)
        if part is None:
            own = {step.id for step in named.steps}
            foreign = next(step_id for step_id in step_ids if step_id not in own)
            raise self._rulings.refusal(
                caller, name, f"the step {foreign[:70]!r} is not of the workflow registered under that name"
            )
        return part
