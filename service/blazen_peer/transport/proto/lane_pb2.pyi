from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LaneRequest(_message.Message):
    __slots__ = ("hello", "calls", "attaches", "cancels", "dropped", "credits", "authorization", "ping")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    ATTACHES_FIELD_NUMBER: _ClassVar[int]
    CANCELS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    AUTHORIZATION_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    calls: _containers.RepeatedCompositeFieldContainer[Call]
    attaches: _containers.RepeatedCompositeFieldContainer[Attach]
    cancels: _containers.RepeatedCompositeFieldContainer[Cancel]
    dropped: _containers.RepeatedScalarFieldContainer[int]
    credits: _containers.RepeatedCompositeFieldContainer[Credit]
    authorization: str
    ping: bool
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., calls: _Optional[_Iterable[_Union[Call, _Mapping]]] = ..., attaches: _Optional[_Iterable[_Union[Attach, _Mapping]]] = ..., cancels: _Optional[_Iterable[_Union[Cancel, _Mapping]]] = ..., dropped: _Optional[_Iterable[int]] = ..., credits: _Optional[_Iterable[_Union[Credit, _Mapping]]] = ..., authorization: _Optional[str] = ..., ping: _Optional[bool] = ...) -> None: ...

class LaneResponse(_message.Message):
    __slots__ = ("welcome", "answers", "events", "cancelled", "going_away", "ping")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    GOING_AWAY_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    answers: _containers.RepeatedCompositeFieldContainer[Answer]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    cancelled: _containers.RepeatedCompositeFieldContainer[CancelAnswer]
    going_away: GoingAway
    ping: bool
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., answers: _Optional[_Iterable[_Union[Answer, _Mapping]]] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., cancelled: _Optional[_Iterable[_Union[CancelAnswer, _Mapping]]] = ..., going_away: _Optional[_Union[GoingAway, _Mapping]] = ..., ping: _Optional[bool] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("version", "client_node_id")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CLIENT_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    version: int
    client_node_id: str
    def __init__(self, version: _Optional[int] = ..., client_node_id: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("instance_id", "max_open_frames", "max_frame_bytes", "max_message_bytes", "heartbeat_ms")
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_OPEN_FRAMES_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_MS_FIELD_NUMBER: _ClassVar[int]
    instance_id: str
    max_open_frames: int
    max_frame_bytes: int
    max_message_bytes: int
    heartbeat_ms: int
    def __init__(self, instance_id: _Optional[str] = ..., max_open_frames: _Optional[int] = ..., max_frame_bytes: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., heartbeat_ms: _Optional[int] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("id", "envelope", "invocation_id", "timeout_ms", "parent_run_id", "data_class", "traceparent", "tracestate", "instance_id", "stream", "cursor", "event_credit")
    ID_FIELD_NUMBER: _ClassVar[int]
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    INVOCATION_ID_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    PARENT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_CLASS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    TRACESTATE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    EVENT_CREDIT_FIELD_NUMBER: _ClassVar[int]
    id: int
    envelope: bytes
    invocation_id: str
    timeout_ms: int
    parent_run_id: str
    data_class: str
    traceparent: str
    tracestate: str
    instance_id: str
    stream: bool
    cursor: int
    event_credit: int
    def __init__(self, id: _Optional[int] = ..., envelope: _Optional[bytes] = ..., invocation_id: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., parent_run_id: _Optional[str] = ..., data_class: _Optional[str] = ..., traceparent: _Optional[str] = ..., tracestate: _Optional[str] = ..., instance_id: _Optional[str] = ..., stream: _Optional[bool] = ..., cursor: _Optional[int] = ..., event_credit: _Optional[int] = ...) -> None: ...

class Attach(_message.Message):
    __slots__ = ("id", "invocation_id", "cursor", "event_credit")
    ID_FIELD_NUMBER: _ClassVar[int]
    INVOCATION_ID_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    EVENT_CREDIT_FIELD_NUMBER: _ClassVar[int]
    id: int
    invocation_id: str
    cursor: int
    event_credit: int
    def __init__(self, id: _Optional[int] = ..., invocation_id: _Optional[str] = ..., cursor: _Optional[int] = ..., event_credit: _Optional[int] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("id", "invocation_id", "grace_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    INVOCATION_ID_FIELD_NUMBER: _ClassVar[int]
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    id: int
    invocation_id: str
    grace_ms: int
    def __init__(self, id: _Optional[int] = ..., invocation_id: _Optional[str] = ..., grace_ms: _Optional[int] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("id", "events")
    ID_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    id: int
    events: int
    def __init__(self, id: _Optional[int] = ..., events: _Optional[int] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("id", "envelope", "refusal", "too_large")
    ID_FIELD_NUMBER: _ClassVar[int]
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    TOO_LARGE_FIELD_NUMBER: _ClassVar[int]
    id: int
    envelope: bytes
    refusal: Refusal
    too_large: bool
    def __init__(self, id: _Optional[int] = ..., envelope: _Optional[bytes] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., too_large: _Optional[bool] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "text", "details", "at_the_gate")
    CODE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    AT_THE_GATE_FIELD_NUMBER: _ClassVar[int]
    code: int
    text: str
    details: bytes
    at_the_gate: bool
    def __init__(self, code: _Optional[int] = ..., text: _Optional[str] = ..., details: _Optional[bytes] = ..., at_the_gate: _Optional[bool] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("id", "envelope")
    ID_FIELD_NUMBER: _ClassVar[int]
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    id: int
    envelope: bytes
    def __init__(self, id: _Optional[int] = ..., envelope: _Optional[bytes] = ...) -> None: ...

class CancelAnswer(_message.Message):
    __slots__ = ("id", "response")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    id: int
    response: bytes
    def __init__(self, id: _Optional[int] = ..., response: _Optional[bytes] = ...) -> None: ...

class GoingAway(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...
