from blazen_peer.transport.proto import lane_pb2 as _lane_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("node_id", "version", "envelope_version", "instance_id", "steps", "workflows", "limits", "policy", "lanes")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ENVELOPE_VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    WORKFLOWS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    version: str
    envelope_version: int
    instance_id: str
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    workflows: _containers.RepeatedCompositeFieldContainer[Workflow]
    limits: Limits
    policy: LoadedPolicy
    lanes: Lanes
    def __init__(self, node_id: _Optional[str] = ..., version: _Optional[str] = ..., envelope_version: _Optional[int] = ..., instance_id: _Optional[str] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ..., workflows: _Optional[_Iterable[_Union[Workflow, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., policy: _Optional[_Union[LoadedPolicy, _Mapping]] = ..., lanes: _Optional[_Union[Lanes, _Mapping]] = ...) -> None: ...

class Lanes(_message.Message):
    __slots__ = ("version", "open", "max_frame_bytes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    version: int
    open: int
    max_frame_bytes: int
    def __init__(self, version: _Optional[int] = ..., open: _Optional[int] = ..., max_frame_bytes: _Optional[int] = ...) -> None: ...

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
    __slots__ = ("name", "step_ids", "data_class", "data_class_by_input")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STEP_IDS_FIELD_NUMBER: _ClassVar[int]
    DATA_CLASS_FIELD_NUMBER: _ClassVar[int]
    DATA_CLASS_BY_INPUT_FIELD_NUMBER: _ClassVar[int]
    name: str
    step_ids: _containers.RepeatedScalarFieldContainer[str]
    data_class: str
    data_class_by_input: bool
    def __init__(self, name: _Optional[str] = ..., step_ids: _Optional[_Iterable[str]] = ..., data_class: _Optional[str] = ..., data_class_by_input: _Optional[bool] = ...) -> None: ...

class LoadedPolicy(_message.Message):
    __slots__ = ("digest", "loaded_at_epoch_ms", "data_classes", "problem")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LOADED_AT_EPOCH_MS_FIELD_NUMBER: _ClassVar[int]
    DATA_CLASSES_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    digest: str
    loaded_at_epoch_ms: int
    data_classes: _containers.RepeatedScalarFieldContainer[str]
    problem: str
    def __init__(self, digest: _Optional[str] = ..., loaded_at_epoch_ms: _Optional[int] = ..., data_classes: _Optional[_Iterable[str]] = ..., problem: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_message_bytes", "max_runs", "default_timeout_ms", "max_timeout_ms", "max_queued_runs", "max_run_refs", "max_run_ref_bytes", "max_refs", "max_ref_bytes", "ref_lease_ms")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_RUNS_FIELD_NUMBER: _ClassVar[int]
    MAX_RUN_REFS_FIELD_NUMBER: _ClassVar[int]
    MAX_RUN_REF_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_REFS_FIELD_NUMBER: _ClassVar[int]
    MAX_REF_BYTES_FIELD_NUMBER: _ClassVar[int]
    REF_LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    max_message_bytes: int
    max_runs: int
    default_timeout_ms: int
    max_timeout_ms: int
    max_queued_runs: int
    max_run_refs: int
    max_run_ref_bytes: int
    max_refs: int
    max_ref_bytes: int
    ref_lease_ms: int
    def __init__(self, max_message_bytes: _Optional[int] = ..., max_runs: _Optional[int] = ..., default_timeout_ms: _Optional[int] = ..., max_timeout_ms: _Optional[int] = ..., max_queued_runs: _Optional[int] = ..., max_run_refs: _Optional[int] = ..., max_run_ref_bytes: _Optional[int] = ..., max_refs: _Optional[int] = ..., max_ref_bytes: _Optional[int] = ..., ref_lease_ms: _Optional[int] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("invocation_id", "grace_ms")
    INVOCATION_ID_FIELD_NUMBER: _ClassVar[int]
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    invocation_id: str
    grace_ms: int
    def __init__(self, invocation_id: _Optional[str] = ..., grace_ms: _Optional[int] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ("outcome", "step_ids", "stopping_ms")
    class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OUTCOME_UNSPECIFIED: _ClassVar[CancelResponse.Outcome]
        OUTCOME_STOPPED: _ClassVar[CancelResponse.Outcome]
        OUTCOME_ALREADY_FINISHED: _ClassVar[CancelResponse.Outcome]
        OUTCOME_STILL_STOPPING: _ClassVar[CancelResponse.Outcome]
    OUTCOME_UNSPECIFIED: CancelResponse.Outcome
    OUTCOME_STOPPED: CancelResponse.Outcome
    OUTCOME_ALREADY_FINISHED: CancelResponse.Outcome
    OUTCOME_STILL_STOPPING: CancelResponse.Outcome
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    STEP_IDS_FIELD_NUMBER: _ClassVar[int]
    STOPPING_MS_FIELD_NUMBER: _ClassVar[int]
    outcome: CancelResponse.Outcome
    step_ids: _containers.RepeatedScalarFieldContainer[str]
    stopping_ms: int
    def __init__(self, outcome: _Optional[_Union[CancelResponse.Outcome, str]] = ..., step_ids: _Optional[_Iterable[str]] = ..., stopping_ms: _Optional[int] = ...) -> None: ...

class AttachRequest(_message.Message):
    __slots__ = ("invocation_id", "cursor")
    INVOCATION_ID_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    invocation_id: str
    cursor: int
    def __init__(self, invocation_id: _Optional[str] = ..., cursor: _Optional[int] = ...) -> None: ...

class AttachResponse(_message.Message):
    __slots__ = ("sequence", "event_type", "data_json", "response")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EVENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_JSON_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    event_type: str
    data_json: bytes
    response: bytes
    def __init__(self, sequence: _Optional[int] = ..., event_type: _Optional[str] = ..., data_json: _Optional[bytes] = ..., response: _Optional[bytes] = ...) -> None: ...

class DerefChunksRequest(_message.Message):
    __slots__ = ("ref_uuid",)
    REF_UUID_FIELD_NUMBER: _ClassVar[int]
    ref_uuid: bytes
    def __init__(self, ref_uuid: _Optional[bytes] = ...) -> None: ...

class DerefChunksResponse(_message.Message):
    __slots__ = ("data", "end")
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    end: DerefEnd
    def __init__(self, data: _Optional[bytes] = ..., end: _Optional[_Union[DerefEnd, _Mapping]] = ...) -> None: ...

class DerefEnd(_message.Message):
    __slots__ = ("size_bytes", "sha256")
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    size_bytes: int
    sha256: bytes
    def __init__(self, size_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class ListRefsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRefsResponse(_message.Message):
    __slots__ = ("refs",)
    REFS_FIELD_NUMBER: _ClassVar[int]
    refs: _containers.RepeatedCompositeFieldContainer[SessionRef]
    def __init__(self, refs: _Optional[_Iterable[_Union[SessionRef, _Mapping]]] = ...) -> None: ...

class SessionRef(_message.Message):
    __slots__ = ("ref_uuid", "origin_node_id", "type_tag", "created_at_epoch_ms", "lifetime", "size_bytes", "lease_left_ms")
    REF_UUID_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_TAG_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_EPOCH_MS_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LEASE_LEFT_MS_FIELD_NUMBER: _ClassVar[int]
    ref_uuid: bytes
    origin_node_id: str
    type_tag: str
    created_at_epoch_ms: int
    lifetime: str
    size_bytes: int
    lease_left_ms: int
    def __init__(self, ref_uuid: _Optional[bytes] = ..., origin_node_id: _Optional[str] = ..., type_tag: _Optional[str] = ..., created_at_epoch_ms: _Optional[int] = ..., lifetime: _Optional[str] = ..., size_bytes: _Optional[int] = ..., lease_left_ms: _Optional[int] = ...) -> None: ...

class ParentEndedRequest(_message.Message):
    __slots__ = ("parent_run_id",)
    PARENT_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    parent_run_id: str
    def __init__(self, parent_run_id: _Optional[str] = ...) -> None: ...

class ParentEndedResponse(_message.Message):
    __slots__ = ("released",)
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    released: int
    def __init__(self, released: _Optional[int] = ...) -> None: ...
