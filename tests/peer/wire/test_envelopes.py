"""The envelopes against the reference's own bytes, round trips, cuts, and noise."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blazen_peer import wire
from blazen_peer.errors import EncodeError, EnvelopeVersionError
from blazen_peer.wire.envelopes import encode_result

GOLDEN = json.loads((Path(__file__).parent / "postcard.json").read_text())
VECTORS = {vector["id"]: vector for vector in GOLDEN["vectors"]}
ENVELOPES = [getattr(wire, name) for name in wire.__all__ if name != "ENVELOPE_VERSION"]
VERSIONED = [envelope for envelope in ENVELOPES if envelope is not wire.RemoteRefDescriptor]


def from_fields(vector: dict[str, Any]) -> Any:
    fields = dict(vector["fields"])
    if "payload_hex" in fields:
        fields["payload"] = bytes.fromhex(fields.pop("payload_hex"))
    for name in ("input_json", "result_json"):
        if fields.get(name) is not None:
            fields[name] = fields[name].encode()
    if "step_ids" in fields:
        fields["step_ids"] = tuple(fields["step_ids"])
    if "state_json" in fields:
        fields["state_json"] = {name: text.encode() for name, text in fields["state_json"].items()}
        fields["remote_refs"] = {UUID(ref): wire.RemoteRefDescriptor(**told) for ref, told in fields["remote_refs"].items()}
    if "ref_uuid" in fields:
        fields["ref_uuid"] = UUID(fields["ref_uuid"])
    return getattr(wire, vector["type"])(**fields)


@pytest.mark.parametrize("vector", GOLDEN["vectors"], ids=lambda vector: vector["id"])
def test_golden_encode(vector: dict[str, Any]) -> None:
    """Every envelope is written byte for byte as the reference writes it."""
    assert from_fields(vector).encode().hex() == vector["hex"]


@pytest.mark.parametrize("vector", [v for v in GOLDEN["vectors"] if v["id"] != "V4"], ids=lambda vector: vector["id"])
def test_golden_decode(vector: dict[str, Any]) -> None:
    """Every envelope that the reference wrote is read as what it meant."""
    assert getattr(wire, vector["type"]).decode(bytes.fromhex(vector["hex"])) == from_fields(vector)


def test_golden_version_of_the_future() -> None:
    """V4 carries the largest version there is: well formed, and refused for its version."""
    with pytest.raises(EnvelopeVersionError) as refused:
        wire.SubWorkflowRequest.decode(bytes.fromhex(VECTORS["V4"]["hex"]))
    assert (refused.value.got, refused.value.supported) == (2**32 - 1, 1)


@pytest.mark.parametrize("vector", GOLDEN["refused"], ids=lambda vector: vector["id"])
def test_golden_refused(vector: dict[str, Any]) -> None:
    """What the reference refuses is refused, with the prefix of the wire's own text exactly once."""
    with pytest.raises(EncodeError) as refused:
        getattr(wire, vector["type"]).decode(bytes.fromhex(vector["hex"]))
    assert str(refused.value).startswith("postcard decode failed: ")
    assert str(refused.value).count("postcard") == 1


@pytest.mark.parametrize("vector", GOLDEN["accepted"], ids=lambda vector: vector["id"])
def test_golden_same_as(vector: dict[str, Any]) -> None:
    """Other spellings of the same envelope mean the same."""
    assert getattr(wire, vector["type"]).decode(bytes.fromhex(vector["hex"])) == from_fields(VECTORS[vector["same_as"]])


version = st.integers(0, wire.ENVELOPE_VERSION)
u64 = st.integers(0, 2**64 - 1)
descriptors = st.builds(wire.RemoteRefDescriptor, st.text(max_size=20), st.text(max_size=20), u64)
responses = st.builds(
    wire.SubWorkflowResponse,
    envelope_version=version,
    state_json=st.dictionaries(st.text(max_size=10), st.binary(max_size=200), max_size=4),
    result_json=st.none() | st.binary(max_size=200),
    remote_refs=st.dictionaries(st.uuids(), descriptors, max_size=4),
    error=st.none() | st.text(),
)
envelopes = st.one_of(
    st.builds(
        wire.SubWorkflowRequest,
        envelope_version=version,
        workflow_name=st.text(),
        step_ids=st.lists(st.text(max_size=10), max_size=200).map(tuple),
        input_json=st.binary(max_size=300),
        timeout_secs=st.none() | u64,
    ),
    responses,
    descriptors,
    st.builds(wire.DerefRequest, envelope_version=version, ref_uuid=st.uuids()),
    st.builds(wire.ReleaseRequest, envelope_version=version, ref_uuid=st.uuids()),
    st.builds(wire.DerefResponse, envelope_version=version, payload=st.binary(max_size=300)),
    st.builds(wire.ReleaseResponse, envelope_version=version, released=st.booleans()),
    st.builds(
        wire.SubWorkflowEvent,
        envelope_version=version,
        sequence=u64,
        event_type=st.text(),
        data_json=st.binary(max_size=300),
        terminal=st.none() | responses,
    ),
)


@given(envelopes, st.binary(max_size=20))
def test_round_trip(envelope: Any, after: bytes) -> None:
    """What is written is read back the same, and bytes behind it do not matter."""
    assert type(envelope).decode(envelope.encode() + after) == envelope


@given(envelopes, st.data())
def test_every_prefix_is_cut_short(envelope: Any, data: st.DataObject) -> None:
    """No prefix passes for a whole envelope, and each is reported as cut short."""
    raw = envelope.encode()
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(EncodeError, match=r"^postcard decode failed: unexpected end$"):
        type(envelope).decode(raw[:cut])


@pytest.mark.parametrize("vector", [v for v in GOLDEN["vectors"] if v["id"] != "V4"], ids=lambda vector: vector["id"])
def test_every_prefix_of_the_golden(vector: dict[str, Any]) -> None:
    """The same, for each prefix of the reference's own bytes."""
    raw = bytes.fromhex(vector["hex"])
    for cut in range(len(raw)):
        with pytest.raises(EncodeError, match="unexpected end"):
            getattr(wire, vector["type"]).decode(raw[:cut])


@settings(max_examples=300)
@given(st.sampled_from(ENVELOPES), st.binary(max_size=200), st.booleans())
def test_any_bytes(envelope: Any, noise: bytes, versioned: bool) -> None:
    """Any bytes decode, or raise one of the two errors, and nothing else."""
    try:
        decoded = envelope.decode(b"\x01" + noise if versioned else noise)
    except (EncodeError, EnvelopeVersionError):
        return
    assert envelope.decode(decoded.encode()) == decoded


@given(envelopes, st.data())
def test_flipped_bytes(envelope: Any, data: st.DataObject) -> None:
    """One byte changed in a good envelope: likewise."""
    raw = bytearray(envelope.encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(EncodeError, EnvelopeVersionError):
        type(envelope).decode(bytes(raw))


@pytest.mark.parametrize("envelope", VERSIONED, ids=lambda envelope: envelope.__name__)
@pytest.mark.parametrize("rest", ["", "ff" * 20, "00"], ids=["nothing", "garbage", "zero"])
def test_newer_version_comes_first(envelope: Any, rest: str) -> None:
    """A newer version is reported as that, whatever layout follows it: requests, responses and events alike."""
    with pytest.raises(EnvelopeVersionError, match=r"^envelope version 2 is newer than supported 1$"):
        envelope.decode(bytes.fromhex("02" + rest))


@pytest.mark.parametrize("old", [0, 1])
def test_versions_up_to_ours_are_read(old: int) -> None:
    """Version 0 is read like version 1, and kept."""
    assert wire.ReleaseResponse.decode(bytes([old, 1])) == wire.ReleaseResponse(True, envelope_version=old)


def test_event_with_a_newer_end_is_refused() -> None:
    """The response inside an event is held to its own version."""
    end = wire.SubWorkflowResponse(envelope_version=2)
    with pytest.raises(EnvelopeVersionError):
        wire.SubWorkflowEvent.decode(wire.SubWorkflowEvent(1, "e", b"{}", end).encode())


def test_later_duplicate_wins() -> None:
    """A key that comes twice in a map keeps its second value."""
    raw = bytes.fromhex("01" + "02" + "016101" + "31" + "016101" + "32" + "00" + "00" + "00")
    assert wire.SubWorkflowResponse.decode(raw).state_json == {"a": b"2"}


def test_empty_error_is_an_error() -> None:
    """An error of no text is not the same as none."""
    assert wire.SubWorkflowResponse.decode(wire.SubWorkflowResponse(error="").encode()).error == ""


@pytest.mark.parametrize(
    "envelope",
    [
        pytest.param(wire.SubWorkflowRequest("\ud800", (), b""), id="surrogate-in-name"),
        pytest.param(wire.SubWorkflowRequest("w", ("a", "\udfff"), b""), id="surrogate-in-step"),
        pytest.param(wire.SubWorkflowResponse(error="\ud800"), id="surrogate-in-error"),
        pytest.param(wire.SubWorkflowRequest("w", (), b"", 2**64), id="timeout-over-u64"),
        pytest.param(wire.SubWorkflowRequest("w", (), b"", -1), id="negative-timeout"),
        pytest.param(wire.ReleaseResponse(True, envelope_version=2**32), id="version-over-u32"),
        pytest.param(wire.RemoteRefDescriptor("n", "t", -1), id="before-1970"),
    ],
)
def test_what_does_not_fit_is_not_written(envelope: Any) -> None:
    """Encoding refuses rather than sends something else."""
    with pytest.raises(EncodeError, match=r"^postcard encode failed: "):
        envelope.encode()


@pytest.mark.parametrize(
    ("envelope", "raw"),
    [
        pytest.param(wire.SubWorkflowRequest, "0100" + "ffffffffffffffffff01", id="step_ids"),
        pytest.param(wire.SubWorkflowRequest, "010000" + "ffffffff0f", id="input_json"),
        pytest.param(wire.SubWorkflowResponse, "01" + "ffffffff0f", id="state_json"),
        pytest.param(wire.SubWorkflowResponse, "010000" + "ffffffff0f", id="remote_refs"),
        pytest.param(wire.DerefResponse, "01" + "ffffffffffffffff7f", id="payload"),
    ],
)
def test_huge_lengths_take_no_memory(envelope: Any, raw: str) -> None:
    """A dozen bytes that declare gigabytes are refused at no cost."""
    tracemalloc.start()
    try:
        with pytest.raises(EncodeError, match="unexpected end"):
            envelope.decode(bytes.fromhex(raw))
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


def test_large_input_is_copied_once_each_way() -> None:
    """Five megabytes of input cost five megabytes to write and five to read, no more."""
    request = wire.SubWorkflowRequest("w", ("a",), b"x" * 5_000_000)
    tracemalloc.start()
    try:
        raw = request.encode()
        assert tracemalloc.get_traced_memory()[1] < 5_500_000
        tracemalloc.reset_peak()
        assert wire.SubWorkflowRequest.decode(raw) == request
        assert tracemalloc.get_traced_memory()[1] < 10_500_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "envelope",
    [
        wire.SubWorkflowRequest("w", ("a",), b"canary"),
        wire.SubWorkflowResponse(state_json={"a": b"canary"}, result_json=b"canary", error="canary"),
        wire.DerefResponse(b"canary"),
        wire.SubWorkflowEvent(1, "e", b"canary", wire.SubWorkflowResponse(result_json=b"canary")),
    ],
    ids=lambda envelope: type(envelope).__name__,
)
def test_repr_holds_no_payload(envelope: Any) -> None:
    """What a log prints of an envelope holds names and sizes, never payloads or error texts."""
    assert "canary" not in repr(envelope)


@given(st.binary(max_size=300) | st.binary(min_size=16_380, max_size=16_390))
def test_result_alone(result_json: bytes) -> None:
    """The short way to the commonest answer gives the very bytes of the long one."""
    assert encode_result(result_json) == wire.SubWorkflowResponse(result_json=result_json).encode()
