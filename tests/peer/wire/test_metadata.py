"""What travels beside an envelope is read strictly where it matters and forgiven where it does not."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blazen_peer.errors import EncodeError
from blazen_peer.wire.metadata import CallMetadata, PeerTraits

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_round_trip() -> None:
    """What a client encodes a server decodes."""
    sent = CallMetadata("id-1", "node-a", 1500, {"traceparent": TRACEPARENT}, "run-1", data_class="personal", workflow="a b")
    assert CallMetadata.decode(sent.encode()) == sent


def test_a_parent_that_cannot_travel() -> None:
    """A run id that a header cannot carry is left out."""
    assert CallMetadata(parent_run_id="größer").encode() == []


@pytest.mark.parametrize("name", ["größe", "", " a", "a ", "a\nb", "x" * 513], ids=repr)
def test_a_workflow_that_cannot_travel(name: str) -> None:
    """A workflow's name that a header would change is left out: the envelope has it."""
    assert CallMetadata(workflow=name).encode() == []


def test_other_clients_send_none() -> None:
    """Blazen's own clients send nothing of it, and others' metadata is passed over."""
    assert CallMetadata.decode([("user-agent", "tonic"), ("x-bin", b"\x00")]) == CallMetadata()


REFUSED = [
    pytest.param([("blazen-invocation-id", "")], id="empty-id"),
    pytest.param([("blazen-invocation-id", "a b")], id="a-space"),
    pytest.param([("blazen-invocation-id", "x" * 129)], id="long-id"),
    pytest.param([("blazen-invocation-id", "a"), ("blazen-invocation-id", "b")], id="two-ids"),
    pytest.param([("blazen-client-node-id", "../a")], id="not-a-node-id"),
    pytest.param([("blazen-parent-run-id", "a b")], id="a-space-in-the-parent"),
    pytest.param([("blazen-parent-run-id", "a"), ("blazen-parent-run-id", "b")], id="two-parents"),
    pytest.param([("blazen-data-class", "personal")] * 2, id="the-same-data-class-twice"),
    pytest.param([("blazen-data-class", "")], id="empty-data-class"),
    pytest.param([("blazen-data-class", "a b")], id="a-space-in-the-data-class"),
    pytest.param([("blazen-workflow", "a"), ("blazen-workflow", "b")], id="two-workflows"),
    pytest.param([("blazen-timeout-ms", "-1")], id="negative"),
    pytest.param([("blazen-timeout-ms", "1e3")], id="not-digits"),
    pytest.param([("blazen-timeout-ms", "٣")], id="digits-of-another-script"),
    pytest.param([("blazen-timeout-ms", "1" * 16)], id="absurd"),
]


@pytest.mark.parametrize("pairs", REFUSED)
def test_refused(pairs: list[tuple[str, str]]) -> None:
    """What decides about a run must be whole and single."""
    with pytest.raises(EncodeError):
        CallMetadata.decode(pairs)


def test_a_broken_trace_refuses_nobody() -> None:
    """A doubled traceparent loses the trace's continuity and not the call."""
    assert CallMetadata.decode([("traceparent", TRACEPARENT), ("traceparent", "x")]).trace == {"traceparent": TRACEPARENT}


@given(
    st.lists(
        st.tuples(st.sampled_from(["blazen-invocation-id", "blazen-timeout-ms", "traceparent", "x"]), st.text() | st.binary())
    )
)
def test_anything_decodes_or_is_refused(pairs: list[tuple[str, str | bytes]]) -> None:
    """Any pairs either decode or raise EncodeError, nothing else."""
    with contextlib.suppress(EncodeError):
        CallMetadata.decode(pairs)


def test_traits_round_trip() -> None:
    """What a peer tells at a health check the client learns."""
    traits = PeerTraits(300_000, 3_600_000, "instance")
    assert PeerTraits.decode(traits.encode()) == traits


@pytest.mark.parametrize("pairs", [[], [("blazen-default-timeout-ms", "soon")], [("blazen-instance-id", b"\x00")]])
def test_traits_not_told(pairs: list[tuple[str, str | bytes]]) -> None:
    """What is not well formed counts as not told."""
    assert PeerTraits.decode(pairs) == PeerTraits()
