from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("node_id", "version", "envelope_version", "instance_id", "steps", "workflows", "limits")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ENVELOPE_VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    WORKFLOWS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    version: str
    envelope_version: int
    instance_id: str
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    workflows: _containers.RepeatedCompositeFieldContainer[Workflow]
    limits: Limits
    def __init__(self, node_id: _Optional[str] = ..., version: _Optional[str] = ..., envelope_version: _Optional[int] = ..., instance_id: _Optional[str] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ..., workflows: _Optional[_Iterable[_Union[Workflow, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("id", "accepts", "emits")
    ID_FIELD_NUMBER: _ClassVar[int]
    ACCEPTS_FIELD_NUMBER: _ClassVar[int]
    EMITS_FIELD_NUMBER: _ClassVar[int]
    id: str
    accepts: _containers.RepeatedCompositeFieldContainer[EventShape]
    emits: _containers.RepeatedCompositeFieldContainer[EventShape]
    def __init__(self, id: _Optional[str] = ..., accepts: _Optional[_Iterable[_Union[EventShape, _Mapping]]] = ..., emits: _Optional[_Iterable[_Union[EventShape, _Mapping]]] = ...) -> None: ...

class EventShape(_message.Message):
    __slots__ = ("event_type", "json_schema")
    EVENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    event_type: str
    json_schema: str
    def __init__(self, event_type: _Optional[str] = ..., json_schema: _Optional[str] = ...) -> None: ...

class Workflow(_message.Message):
    __slots__ = ("name", "step_ids")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STEP_IDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    step_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., step_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_message_bytes", "max_runs", "default_timeout_ms", "max_timeout_ms")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    max_message_bytes: int
    max_runs: int
    default_timeout_ms: int
    max_timeout_ms: int
    def __init__(self, max_message_bytes: _Optional[int] = ..., max_runs: _Optional[int] = ..., default_timeout_ms: _Optional[int] = ..., max_timeout_ms: _Optional[int] = ...) -> None: ...
