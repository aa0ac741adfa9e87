"""From a call's arguments to its message: checked whole before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from blazen_peer import jsontext
from blazen_peer.config import check_timeout_secs
from blazen_peer.errors import EncodeError, ValidationError
from blazen_peer.wire import SubWorkflowRequest
from blazen_peer.wire.metadata import MAX_TIMEOUT_SECS

__all__ = ["Request", "bounded_secs", "request_of"]


class Request(NamedTuple):
    """A call's message.

    Attributes:
        workflow_name: Which workflow is called.
        envelope: What goes out, in a message of its own or in a lane's.
        waits_secs: What its run may take, in seconds.
        timeout_ms: The same exactly, where it is no whole number of seconds: the envelope rounds up.
    """

    workflow_name: str
    envelope: bytes
    waits_secs: float
    timeout_ms: int | None


def request_of(
    workflow_name: str,
    step_ids: Sequence[str],
    input_json: str,
    timeout_secs: float | None,
    *,
    default_secs: float,
    max_message_bytes: int,
) -> Request:
    """Return the request for the arguments of ``run_remote_workflow``; *default_secs* is what its run may take without any.

    Raises:
        ValidationError: One of them is not usable.
        EncodeError: The message is over *max_message_bytes*.
    """
    if isinstance(step_ids, str):
        raise ValidationError("step_ids is one string: give a list of step ids")
    if not isinstance(step_ids, Iterable):
        raise ValidationError(f"step_ids is {type(step_ids).__name__}: give a list of step ids")
    step_ids = tuple(step_ids)
    for name in (workflow_name, *step_ids):
        if not isinstance(name, str):
            raise ValidationError(f"names of workflows and steps are text, not {type(name).__name__}")
    if not isinstance(input_json, str):
        raise ValidationError(f"input_json is {type(input_json).__name__}: give JSON text, such as json.dumps makes")
    try:
        jsontext.parse(input_json)
    except ValidationError as error:
        raise ValidationError(f"input_json is not JSON: {error}") from None
    run_secs, whole_secs, timeout_ms = default_secs, None, None
    if timeout_secs is not None:
        run_secs = bounded_secs(timeout_secs)
        whole_secs = math.ceil(run_secs)
        timeout_ms = None if whole_secs == run_secs else math.ceil(round(run_secs * 1000, 6))
    try:
        envelope = SubWorkflowRequest(workflow_name, step_ids, input_json.encode(), whole_secs).encode()
    except EncodeError as error:
        raise ValidationError(str(error)) from None
    size_bytes = len(envelope) + 1 + max(1, (len(envelope).bit_length() + 6) // 7)  # a protobuf message of one field
    if size_bytes > max_message_bytes:
        raise EncodeError(
            f"the request has {size_bytes} bytes, over the limit of {max_message_bytes}", size_bytes, max_message_bytes
        )
    return Request(workflow_name, envelope, run_secs, timeout_ms)


def bounded_secs(timeout_secs: float) -> float:
    """Return *timeout_secs* as grpcio takes it.

    Raises:
        ValidationError: It is no number from 0 on.
    """
    return min(check_timeout_secs(timeout_secs), MAX_TIMEOUT_SECS)
