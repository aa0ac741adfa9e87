"""What is inside a call's envelopes: the input and the request's fingerprint, and the answer that a run's end makes."""

from __future__ import annotations

import hashlib
from typing import Final

from blazen_peer import jsontext
from blazen_peer.errors import EncodeError, ValidationError
from blazen_peer.runtime.execution import CANCELLED, TIMED_OUT
from blazen_peer.runtime.run import Run
from blazen_peer.wire import SubWorkflowRequest, SubWorkflowResponse
from blazen_peer.wire.envelopes import encode_result

__all__ = ["MAX_INLINE_BYTES", "answer_of", "read_input"]

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


def answer_of(run: Run) -> bytes:
    """Return the response envelope to the call that *run*, which is over, was made for."""
    result = run.result
    if result is not None and not (result.remote_refs or run.exported):
        return encode_result(result.data_json.encode())
    state_json = {key: text.encode() for key, text in run.exported.items()}
    if result is not None:
        refs = {uuid: ref.descriptor for uuid, ref in result.remote_refs.items()}
        response = SubWorkflowResponse(state_json=state_json, result_json=result.data_json.encode(), remote_refs=refs)
    else:
        text = str(run.error)
        error = text if text.startswith(_BARE) else f"workflow error: {text}"
        response = SubWorkflowResponse(state_json=state_json, error=error)
    return response.encode()
