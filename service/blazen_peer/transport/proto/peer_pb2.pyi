from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class PostcardRequest(_message.Message):
    __slots__ = ("postcard_payload",)
    POSTCARD_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    postcard_payload: bytes
    def __init__(self, postcard_payload: _Optional[bytes] = ...) -> None: ...

class PostcardResponse(_message.Message):
    __slots__ = ("postcard_payload",)
    POSTCARD_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    postcard_payload: bytes
    def __init__(self, postcard_payload: _Optional[bytes] = ...) -> None: ...
