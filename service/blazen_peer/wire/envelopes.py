"""The envelopes of ``blazen.peer.v1``: what travels in the one bytes field of every protobuf message.

Fields stand in the order of the wire. New optional fields may be added at the end only, and never to a request. Payloads and
error texts are kept out of ``repr``, so that no log carries them by accident.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self
from uuid import UUID

from blazen_peer.errors import EnvelopeVersionError
from blazen_peer.wire.postcard import Reader, Writer, decode_error, encode_error, length_of

__all__ = [
    "ENVELOPE_VERSION",
    "DerefRequest",
    "DerefResponse",
    "ReleaseRequest",
    "ReleaseResponse",
    "RemoteRefDescriptor",
    "SubWorkflowEvent",
    "SubWorkflowRequest",
    "SubWorkflowResponse",
    "encode_result",
]

ENVELOPE_VERSION = 1
_RESULT_ALONE = bytes((ENVELOPE_VERSION, 0, 1))  # no state, a result; behind it no refs, no error


class _Struct:
    """What every struct can do; the fields' order is in ``_read`` and ``_write``."""

    __slots__ = ()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the struct that *data* begins with; bytes after its last field are ignored.

        Raises:
            EnvelopeVersionError: Its version is newer than ``ENVELOPE_VERSION``, whatever follows.
            EncodeError: It is not such a struct; the text is ``postcard decode failed: <why>`` and holds nothing of *data*.
        """
        try:
            return cls._read(Reader(data))
        except IndexError:
            raise decode_error("unexpected end") from None
        except UnicodeDecodeError:
            raise decode_error("a string is not UTF-8") from None

    def encode(self) -> bytes:
        """Return the postcard bytes.

        Raises:
            EncodeError: A number is out of its field's range, or a string holds a lone surrogate.
        """
        writer = Writer()
        try:
            self._write(writer)
        except UnicodeEncodeError:
            raise encode_error("a string holds a lone surrogate") from None
        return writer.joined()

    @classmethod
    def _read(cls, reader: Reader) -> Self:
        raise NotImplementedError

    def _write(self, writer: Writer) -> None:
        raise NotImplementedError


def _version(reader: Reader) -> int:
    version = reader.u32()
    if version > ENVELOPE_VERSION:
        raise EnvelopeVersionError(version, ENVELOPE_VERSION)
    return version


@dataclass(frozen=True, slots=True)
class SubWorkflowRequest(_Struct):
    """A request to run steps as a sub-workflow.

    Attributes:
        step_ids: The steps; empty means all those of the workflow registered under ``workflow_name``.
        input_json: One JSON document. It is not looked at here.
        timeout_secs: Whole seconds; None leaves it to the server. 0 means no time at all.
    """

    envelope_version: int = field(default=ENVELOPE_VERSION, kw_only=True)
    workflow_name: str
    step_ids: tuple[str, ...]
    input_json: bytes = field(repr=False)
    timeout_secs: int | None = None

    @classmethod
    def _read(cls, reader: Reader) -> Self:
        return cls(
            envelope_version=_version(reader),
            workflow_name=reader.text(),
            step_ids=tuple([reader.text() for _ in range(reader.count())]),
            input_json=reader.blob(),
            timeout_secs=reader.u64() if reader.present() else None,
        )

    def _write(self, writer: Writer) -> None:
        writer.u32(self.envelope_version)
        writer.text(self.workflow_name)
        writer.count(len(self.step_ids))
        for step_id in self.step_ids:
            writer.text(step_id)
        writer.blob(self.input_json)
        writer.flag(self.timeout_secs is not None)
        if self.timeout_secs is not None:
            writer.u64(self.timeout_secs)


@dataclass(frozen=True, slots=True)
class RemoteRefDescriptor(_Struct):
    """A value that stays on the node that made it; ``created_at_epoch_ms`` is milliseconds since 1970, UTC."""

    origin_node_id: str
    type_tag: str
    created_at_epoch_ms: int

    @classmethod
    def _read(cls, reader: Reader) -> Self:
        return cls(reader.text(), reader.text(), reader.u64())

    def _write(self, writer: Writer) -> None:
        writer.text(self.origin_node_id)
        writer.text(self.type_tag)
        writer.u64(self.created_at_epoch_ms)


@dataclass(frozen=True, slots=True)
class SubWorkflowResponse(_Struct):
    """How a run ended.

    Attributes:
        state_json: What the run exported: name to JSON document.
        result_json: The terminal event's payload, one JSON document; None when the run failed.
        remote_refs: The refs that the run left behind.
        error: Why the run failed; not None, even if empty, means that it did.
    """

    envelope_version: int = field(default=ENVELOPE_VERSION, kw_only=True)
    state_json: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    result_json: bytes | None = field(default=None, repr=False)
    remote_refs: Mapping[UUID, RemoteRefDescriptor] = field(default_factory=dict)
    error: str | None = field(default=None, repr=False)

    @classmethod
    def _read(cls, reader: Reader) -> Self:
        return cls(
            envelope_version=_version(reader),
            state_json={reader.text(): reader.blob() for _ in range(reader.count())},
            result_json=reader.blob() if reader.present() else None,
            remote_refs={reader.uuid(): RemoteRefDescriptor._read(reader) for _ in range(reader.count())},
            error=reader.text() if reader.present() else None,
        )

    def _write(self, writer: Writer) -> None:
        writer.u32(self.envelope_version)
        writer.count(len(self.state_json))
        for name, document in self.state_json.items():
            writer.text(name)
            writer.blob(document)
        writer.flag(self.result_json is not None)
        if self.result_json is not None:
            writer.blob(self.result_json)
        writer.count(len(self.remote_refs))
        for ref_uuid, descriptor in self.remote_refs.items():
            writer.uuid(ref_uuid)
            descriptor._write(writer)
        writer.flag(self.error is not None)
        if self.error is not None:
            writer.text(self.error)


def encode_result(result_json: bytes) -> bytes:
    """Return what ``SubWorkflowResponse(result_json=result_json).encode()`` does, at a fifth of the time: most runs end so."""
    return b"".join((_RESULT_ALONE, length_of(result_json), result_json, b"\x00\x00"))


@dataclass(frozen=True, slots=True)
class _RefRequest(_Struct):
    envelope_version: int = field(default=ENVELOPE_VERSION, kw_only=True)
    ref_uuid: UUID

    @classmethod
    def _read(cls, reader: Reader) -> Self:
        return cls(envelope_version=_version(reader), ref_uuid=reader.uuid())

    def _write(self, writer: Writer) -> None:
        writer.u32(self.envelope_version)
        writer.uuid(self.ref_uuid)


@dataclass(frozen=True, slots=True)
class DerefRequest(_RefRequest):
    """A request for the value of a ref."""


@dataclass(frozen=True, slots=True)
class ReleaseRequest(_RefRequest):
    """A request to forget a ref."""


@dataclass(frozen=True, slots=True)
class DerefResponse(_Struct):
    """The bytes of a ref's value."""

    envelope_version: int = field(default=ENVELOPE_VERSION, kw_only=True)
    payload: bytes = field(repr=False)

    @classmethod
    def _read(cls, reader: Reader) -> Self:
        return cls(envelope_version=_version(reader), payload=reader.blob())

    def _write(self, writer: Writer) -> None:
        writer.u32(self.envelope_version)
        writer.blob(self.payload)


@dataclass(frozen=True, slots=True)
class ReleaseResponse(_Struct):
    """Whether there was such a ref to forget."""

    envelope_version: int = field(default=ENVELOPE_VERSION, kw_only=True)
    released: bool

    @classmethod
    def _read(cls, reader: Reader) -> Self:
        return cls(envelope_version=_version(reader), released=reader.flag())

    def _write(self, writer: Writer) -> None:
        writer.u32(self.envelope_version)
        writer.flag(self.released)


@dataclass(frozen=True, slots=True)
class SubWorkflowEvent(_Struct):
    """One event of a run being watched. The layout is ours: the reference has none and serves no stream.

    Attributes:
        sequence: Counts up within the run.
        event_type: The event's wire name.
        data_json: Its data, one JSON document.
        terminal: How the run ended, on its last event only.
    """

    envelope_version: int = field(default=ENVELOPE_VERSION, kw_only=True)
    sequence: int
    event_type: str
    data_json: bytes = field(repr=False)
    terminal: SubWorkflowResponse | None = None

    @classmethod
    def _read(cls, reader: Reader) -> Self:
        return cls(
            envelope_version=_version(reader),
            sequence=reader.u64(),
            event_type=reader.text(),
            data_json=reader.blob(),
            terminal=SubWorkflowResponse._read(reader) if reader.present() else None,
        )

    def _write(self, writer: Writer) -> None:
        writer.u32(self.envelope_version)
        writer.u64(self.sequence)
        writer.text(self.event_type)
        writer.blob(self.data_json)
        writer.flag(self.terminal is not None)
        if self.terminal is not None:
            self.terminal._write(writer)
