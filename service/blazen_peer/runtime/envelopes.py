"""What is inside a call's envelopes: the input and the request's fingerprint, and the answer that a run's end makes."""

from __future__ import annotations

import hashlib
from typing import Final

from blazen_peer import jsontext
from blazen_peer.errors import EncodeError, ValidationError
from blazen_peer.runtime.execution import CANCELLED, TIMED_OUT
from blazen_peer.runtime.run import Run
from blazen_peer.wire import SubWorkflowRequest, SubWorkflowResponse

__all__ = ["MAX_INLINE_BYTES", "read_input", "response_of"]

MAX_INLINE_BYTES: Final = 256 * 1024  # of an envelope whose input the loop may parse: 5 MB can hold it for a second
_BARE = (TIMED_OUT, CANCELLED)  # texts that stand without "workflow error: " on the wire


def read_input(request: SubWorkflowRequest, named: bool, data_class: str | None = None) -> tuple[object, bytes]:
    """Return the input, parsed, and the request's fingerprint. Beyond ``MAX_INLINE_BYTES`` that is for a thread.

    Args:
        request: What came.
        named: Whether the call has an id; without one there is nothing to compare with.
        data_class: What the call was stamped with, where that counts.

    Raises:
        EncodeError: The input is not JSON.
    """
    return _parsed(request.input_json), _fingerprint(request, data_class) if named else b""


def _parsed(input_json: bytes) -> object:
    try:
        return jsontext.parse(input_json)
    except ValidationError as error:
        raise EncodeError(f"invalid input JSON: {error}") from None


def _fingerprint(request: SubWorkflowRequest, data_class: str | None) -> bytes:
    """Return what a repeat has in common with its first: workflow, steps, input and data class, and not the timeout.

    Step ids and data classes hold no NUL, so that their number in front keeps a name that holds one from being taken for more.
    """
    steps = request.step_ids
    head = f"{len(steps)}\0{data_class or ''}\0{request.workflow_name}\0{chr(0).join(steps)}\0"
    return hashlib.sha256(head.encode() + request.input_json).digest()


def response_of(run: Run) -> SubWorkflowResponse:
    """Return the answer to the call that *run*, which is over, was made for."""
    state_json = {key: text.encode() for key, text in run.exported.items()}
    if run.result is not None:
        refs = {uuid: ref.descriptor for uuid, ref in run.result.remote_refs.items()}
        return SubWorkflowResponse(state_json=state_json, result_json=run.result.data_json.encode(), remote_refs=refs)
    text = str(run.error)
    return SubWorkflowResponse(state_json=state_json, error=text if text.startswith(_BARE) else f"workflow error: {text}")
