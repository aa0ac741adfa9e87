"""What a run gives back, the same for a local and a remote one."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from uuid import UUID

from blazen_peer import jsontext
from blazen_peer.events import StopEvent
from blazen_peer.runtime.refs import RemoteRef

__all__ = ["WorkflowResult"]

_UNPARSED: Any = object()
_NO_REFS: Mapping[UUID, RemoteRef] = MappingProxyType({})
_NO_STATE: Mapping[str, str] = MappingProxyType({})


class WorkflowResult:
    """The end of a run.

    Attributes:
        event: The terminal ``blazen::StopEvent``: of the step's own class for a local run, untyped for a remote one.
        data_json: Its payload as compact JSON text: what crosses the wire.
        remote_refs: The session refs that the run left, by uuid, in the order in which they were put.
        state_json: What its steps exported: JSON text by key.
        total_input_tokens, total_output_tokens, total_cost_usd: Always 0: they do not travel between peers.
    """

    __slots__ = ("_parsed", "data_json", "event", "remote_refs", "state_json")

    total_input_tokens: int = 0
    total_output_tokens: int = 0
    total_cost_usd: float = 0.0

    def __init__(
        self,
        event: StopEvent,
        data_json: str,
        remote_refs: Mapping[UUID, RemoteRef] = _NO_REFS,
        state_json: Mapping[str, str] = _NO_STATE,
    ) -> None:
        self.event, self.data_json, self.remote_refs, self.state_json = event, data_json, remote_refs, state_json
        self._parsed = _UNPARSED

    @classmethod
    def from_json(
        cls,
        text: str,
        remote_refs: Mapping[UUID, RemoteRef] = _NO_REFS,
        state_json: Mapping[str, str] = _NO_STATE,
    ) -> WorkflowResult:
        """Return the result whose payload's JSON text, and what beside it was exported, a peer answered.

        Raises:
            ValidationError: The payload is not strict JSON. (What was exported is read when ``state`` is.)
        """
        payload = jsontext.parse(text)
        result = cls(StopEvent(result=payload), text, remote_refs, state_json)
        result._parsed = payload
        return result

    @property
    def result(self) -> Any:
        """The payload, parsed from ``data_json``: so local and remote runs give equal values (a tuple became a list)."""
        if self._parsed is _UNPARSED:
            self._parsed = jsontext.parse(self.data_json)
        return self._parsed

    @property
    def state(self) -> dict[str, Any]:
        """What the run's steps exported, parsed: a new dict each time.

        Raises:
            ValidationError: A peer, not one of ours, answered what is not strict JSON.
        """
        return {key: jsontext.parse(text) for key, text in self.state_json.items()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WorkflowResult) and self.data_json == other.data_json and self.state_json == other.state_json

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"WorkflowResult(<{len(self.data_json)} characters of JSON>)"  # no payload gets into a log by accident
