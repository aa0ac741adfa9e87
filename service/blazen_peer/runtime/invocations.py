"""What a server does for one call, knowing nothing of gRPC: an envelope in, a run, an envelope out.

The run belongs to this table and not to the call: a caller that goes away severs only its own wait.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable

from blazen_peer import jsontext
from blazen_peer.config import ServerSettings
from blazen_peer.errors import EncodeError, OverloadedError, TransportError, UnknownStepError, ValidationError, WorkflowError
from blazen_peer.identity import Caller
from blazen_peer.runtime.registry import Registry
from blazen_peer.runtime.run import Run
from blazen_peer.runtime.workflow import Workflow
from blazen_peer.wire import SubWorkflowRequest, SubWorkflowResponse
from blazen_peer.wire.metadata import CallMetadata

__all__ = ["Invocations"]

_MAX_RESOLVED = 256  # workflows kept assembled, by name and step ids
_RETRY_AFTER_SECS = 1.0

logger = logging.getLogger(__name__)


class Invocations:
    """The runs of one server.

    Args:
        node_id: The server's own name.
        registry: Where step ids and workflow names are looked up; nothing else on the wire names code.
        settings: The limits.
    """

    def __init__(self, node_id: str, registry: Registry, settings: ServerSettings) -> None:
        self._node_id, self._registry, self._settings = node_id, registry, settings
        self._runs: set[Run] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._refusing = False
        self._resolved: OrderedDict[tuple[str, tuple[str, ...]], Workflow] = OrderedDict()
        self._generation = registry.generation

    @property
    def in_progress(self) -> int:
        """How many runs have not ended."""
        return len(self._runs)

    async def invoke(self, payload: bytes, caller: Caller, metadata: CallMetadata) -> bytes:
        """Answer one ``InvokeSubWorkflow``: a response envelope for whatever became of the run.

        Raises:
            EncodeError, EnvelopeVersionError, UnknownStepError: The request cannot be run.
            OverloadedError: As many runs as may be are in progress.
            TransportError: The server is going away; nothing ran.
        """
        request = SubWorkflowRequest.decode(payload)
        workflow = self._workflow(request.workflow_name, request.step_ids)
        try:
            document = jsontext.parse(request.input_json)
        except ValidationError as error:
            raise EncodeError(f"invalid input JSON: {error}") from None
        run = self._start(workflow, document, caller, metadata, self._timeout_secs(request, metadata))
        try:
            event = await asyncio.shield(run.outcome)
        except WorkflowError as error:
            text = str(error)
            return SubWorkflowResponse(
                error=text if text in _BARE or text.startswith(_TIMED_OUT) else f"workflow error: {text}"
            ).encode()
        return SubWorkflowResponse(result_json=event.data_json.encode()).encode()

    def refuse_new(self) -> None:
        """Refuse every call from now on: the server is going away."""
        self._refusing = True

    async def wait_idle(self, timeout_secs: float) -> bool:
        """Wait until no run is in progress, at most *timeout_secs*; say whether that is so."""
        try:
            async with asyncio.timeout(timeout_secs):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def cancel_all(self) -> int:
        """Cancel the runs in progress and return how many they were."""
        runs = list(self._runs)
        for run in runs:
            run.cancel()
        return len(runs)

    def _workflow(self, name: str, step_ids: tuple[str, ...]) -> Workflow:
        if self._generation != self._registry.generation:
            self._resolved.clear()
            self._generation = self._registry.generation
        key = (name, step_ids)
        workflow = self._resolved.get(key)
        if workflow is None:
            if step_ids:
                workflow = Workflow.from_step_ids(name, step_ids, self._registry)
            elif (workflow := self._registry.workflow(name)) is None:
                raise UnknownStepError(f"unknown workflow `{name}`")
            self._resolved[key] = workflow
            if len(self._resolved) > _MAX_RESOLVED:
                self._resolved.popitem(last=False)
        return workflow
