"""What a server does for one call, knowing nothing of gRPC: an envelope in, a run, an envelope out.

The run belongs to this table and not to the call: a caller that goes away severs only its own wait.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict

from blazen_peer import jsontext
from blazen_peer.config import ServerSettings
from blazen_peer.errors import EncodeError, OverloadedError, TransportError, UnknownStepError, ValidationError, WorkflowError
from blazen_peer.identity import Caller
from blazen_peer.runtime.ref_serving import RefServing
from blazen_peer.runtime.registry import Registry
from blazen_peer.runtime.run import Run
from blazen_peer.runtime.run_refs import RunRefs
from blazen_peer.runtime.workflow import Workflow
from blazen_peer.wire import SubWorkflowRequest, SubWorkflowResponse
from blazen_peer.wire.metadata import CallMetadata

__all__ = ["Invocations"]

_MAX_RESOLVED = 256  # workflows kept assembled, by name and step ids
_RETRY_AFTER_SECS = 1.0
_MAX_INLINE_BYTES = 256 * 1024
_BARE = ("workflow timed out after ", "workflow cancelled")  # texts that stand without "workflow error: " on the wire


class Invocations:
    """The runs of one server.

    Args:
        node_id: The server's own name.
        registry: Where step ids and workflow names are looked up; nothing else on the wire names code.
        settings: The limits.
        refs: Where the runs' session refs are held.
    """

    def __init__(self, node_id: str, registry: Registry, settings: ServerSettings, refs: RefServing) -> None:
        self._node_id, self._registry, self._settings = node_id, registry, settings
        self._refs = refs
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
            document = await _parsed(request.input_json)
        except ValidationError as error:
            raise EncodeError(f"invalid input JSON: {error}") from None
        run = self._start(workflow, document, caller, metadata, self._timeout_secs(request, metadata))
        try:
            result = await run.wait()
        except WorkflowError as error:
            text = str(error)
            return SubWorkflowResponse(error=text if text.startswith(_BARE) else f"workflow error: {text}").encode()
        refs = {uuid: ref.descriptor for uuid, ref in result.remote_refs.items()}
        return SubWorkflowResponse(result_json=result.data_json.encode(), remote_refs=refs).encode()

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

    def _start(self, workflow: Workflow, document: object, caller: Caller, metadata: CallMetadata, timeout_secs: float) -> Run:
        if self._refusing:
            raise TransportError("this peer is going away", may_have_run=False)
        if len(self._runs) >= self._settings.max_runs:
            raise OverloadedError(f"{len(self._runs)} runs are in progress, as many as may be", _RETRY_AFTER_SECS)
        run = workflow.start(
            document,
            caller=caller,
            invocation_id=metadata.invocation_id,
            node_id=self._node_id,
            timeout_secs=timeout_secs,
            on_end=self._over,
            refs=RunRefs(self._refs.table, caller, parent_run_id=metadata.parent_run_id, listed=True),
        )
        self._runs.add(run)
        self._idle.clear()
        return run

    def _over(self, run: Run) -> None:
        self._runs.discard(run)
        self._refs.watch_leases()
        if not self._runs:
            self._idle.set()

    def _timeout_secs(self, request: SubWorkflowRequest, metadata: CallMetadata) -> float:
        """Return the time of the run in seconds: the exact one where it is told, never more than the server's most."""
        if request.timeout_secs is None:
            return self._settings.default_timeout_secs
        exact_secs = math.inf if metadata.timeout_ms is None else metadata.timeout_ms / 1000
        return min(request.timeout_secs, exact_secs, self._settings.max_timeout_secs)

    def _workflow(self, name: str, step_ids: tuple[str, ...]) -> Workflow:
        if self._generation != self._registry.generation:
            self._resolved.clear()
            self._generation = self._registry.generation
        key = (name, step_ids)
        workflow = self._resolved.get(key)
        if workflow is None:
            if step_ids:
                workflow = _assembled(name, step_ids, self._registry)
            elif (workflow := self._registry.workflow(name)) is None:
                raise UnknownStepError(f"unknown workflow `{name}`")
            self._resolved[key] = workflow
            if len(self._resolved) > _MAX_RESOLVED:
                self._resolved.popitem(last=False)
        return workflow


def _assembled(name: str, step_ids: tuple[str, ...], registry: Registry) -> Workflow:
    try:
        return Workflow.from_step_ids(name, step_ids, registry)
    except ValidationError as error:  # a step named twice
        raise EncodeError(str(error)) from None


async def _parsed(input_json: bytes) -> object:
    """Parse a document: a large one in a thread, because some 5 MB can hold a loop for a second."""
    if len(input_json) <= _MAX_INLINE_BYTES:
        return jsontext.parse(input_json)
    return await asyncio.to_thread(jsontext.parse, input_json)
