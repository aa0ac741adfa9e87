"""The error tree: as it is drawn, with stable kinds, whole after pickle."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from blazen_peer import errors

CASES = [
    pytest.param(errors.BlazenError("m"), "Error", "m", {}, id="BlazenError"),
    pytest.param(errors.ValidationError("m"), "Validation", "m", {}, id="ValidationError"),
    pytest.param(errors.WorkflowError("m", "s"), "Workflow", "m", {"message": "m", "step_id": "s"}, id="WorkflowError"),
    pytest.param(errors.WorkflowError(""), "Workflow", "", {"message": "", "step_id": None}, id="WorkflowError-empty"),
    pytest.param(errors.PeerError("m"), "Protocol", "m", {"status": None}, id="PeerError"),
    pytest.param(
        errors.PeerError("m", "Unsupported", "UNIMPLEMENTED"), "Unsupported", "m", {"status": "UNIMPLEMENTED"}, id="Unsupported"
    ),
    pytest.param(errors.TransportError("m"), "Transport", "m", {"may_have_run": True}, id="TransportError"),
    pytest.param(errors.TransportError("m", False), "Transport", "m", {"may_have_run": False}, id="TransportError-not-run"),
    pytest.param(errors.TlsError("m"), "Tls", "m", {"may_have_run": False}, id="TlsError"),
    pytest.param(errors.UnknownStepError("m", "s"), "UnknownStep", "m", {"step_id": "s"}, id="UnknownStepError"),
    pytest.param(
        errors.EnvelopeVersionError(2, 1),
        "EnvelopeVersion",
        "envelope version 2 is newer than supported 1",
        {"got": 2, "supported": 1},
        id="EnvelopeVersionError",
    ),
    pytest.param(
        errors.EnvelopeVersionError(None, None, "m"), "EnvelopeVersion", "m", {"got": None}, id="EnvelopeVersionError-untold"
    ),
    pytest.param(errors.EncodeError("m", 9, 4), "Encode", "m", {"size_bytes": 9, "limit_bytes": 4}, id="EncodeError"),
    pytest.param(errors.UnauthenticatedError("m"), "Unauthenticated", "m", {}, id="UnauthenticatedError"),
    pytest.param(errors.PermissionDeniedError("m"), "PermissionDenied", "m", {}, id="PermissionDeniedError"),
    pytest.param(errors.OverloadedError("m", 1.5), "Overloaded", "m", {"retry_after_secs": 1.5}, id="OverloadedError"),
    pytest.param(errors.RefNotFoundError("m"), "RefNotFound", "m", {}, id="RefNotFoundError"),
    pytest.param(errors.InvocationConflictError("m"), "InvocationConflict", "m", {}, id="InvocationConflictError"),
    pytest.param(errors.InvocationNotFoundError("m"), "InvocationNotFound", "m", {}, id="InvocationNotFoundError"),
]


@pytest.mark.parametrize(("error", "kind", "text", "fields"), CASES)
def test_error(error: errors.BlazenError, kind: str, text: str, fields: dict[str, object]) -> None:
    """Kind, text and fields are as told, and the same after pickle; repr can be read back."""
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    read_back = eval(repr(error), vars(errors))  # noqa: S307 - our own repr
    for one in (error, again, read_back):
        assert type(one) is type(error)
        assert (one.kind, str(one), one.args) == (kind, text, error.args)
        assert {name: getattr(one, name) for name in fields} == fields


def test_every_public_class_has_a_case() -> None:
    """No error is left out of the table above."""
    assert {type(case.values[0]).__name__ for case in CASES} == set(errors.__all__)


def test_tree_is_as_drawn() -> None:
    """The docstring's drawing has every class below its parent, with its kind."""
    drawn: dict[str, tuple[str | None, str | None]] = {}
    stack: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        entry = re.match(r"    ((?:[│ ] {3})*(?:[├└]── )?)(\w+Error)\b(?:\s+\"(\w+)\")?", line)
        if entry:
            level = len(entry[1]) // 4
            stack[level:] = [entry[2]]
            drawn[entry[2]] = (stack[level - 1] if level else None, entry[3])
    assert set(drawn) == set(errors.__all__)
    for name, (parent, kind) in drawn.items():
        error = getattr(errors, name)
        above = next(base.__name__ for base in inspect.getmro(error)[1:] if not base.__name__.startswith("_"))
        assert above == (parent or "Exception")
        assert kind is None or kind == error.kind


def test_kinds_are_distinct() -> None:
    """A kind tells its class."""
    kinds = [getattr(errors, name).kind for name in errors.__all__]
    assert len(set(kinds)) == len(kinds)
