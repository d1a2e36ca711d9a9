from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "limits", "features")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    version: str
    limits: ServerLimits
    features: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[str] = ..., limits: _Optional[_Union[ServerLimits, _Mapping]] = ..., features: _Optional[_Iterable[str]] = ...) -> None: ...

class ServerLimits(_message.Message):
    __slots__ = ("max_id_bytes", "max_aliases", "max_payload_bytes", "max_result_bytes", "max_detail_bytes", "max_batch_items", "max_request_bytes", "max_waiters_per_session", "max_event_ttl", "max_claim_ttl", "max_lease_ttl", "max_wait", "max_hold", "call_timeout")
    MAX_ID_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_ALIASES_FIELD_NUMBER: _ClassVar[int]
    MAX_PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_RESULT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_DETAIL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_ITEMS_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_WAITERS_PER_SESSION_FIELD_NUMBER: _ClassVar[int]
    MAX_EVENT_TTL_FIELD_NUMBER: _ClassVar[int]
    MAX_CLAIM_TTL_FIELD_NUMBER: _ClassVar[int]
    MAX_LEASE_TTL_FIELD_NUMBER: _ClassVar[int]
    MAX_WAIT_FIELD_NUMBER: _ClassVar[int]
    MAX_HOLD_FIELD_NUMBER: _ClassVar[int]
    CALL_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    max_id_bytes: int
    max_aliases: int
    max_payload_bytes: int
    max_result_bytes: int
    max_detail_bytes: int
    max_batch_items: int
    max_request_bytes: int
    max_waiters_per_session: int
    max_event_ttl: _duration_pb2.Duration
    max_claim_ttl: _duration_pb2.Duration
    max_lease_ttl: _duration_pb2.Duration
    max_wait: _duration_pb2.Duration
    max_hold: _duration_pb2.Duration
    call_timeout: _duration_pb2.Duration
    def __init__(self, max_id_bytes: _Optional[int] = ..., max_aliases: _Optional[int] = ..., max_payload_bytes: _Optional[int] = ..., max_result_bytes: _Optional[int] = ..., max_detail_bytes: _Optional[int] = ..., max_batch_items: _Optional[int] = ..., max_request_bytes: _Optional[int] = ..., max_waiters_per_session: _Optional[int] = ..., max_event_ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., max_claim_ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., max_lease_ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., max_wait: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., max_hold: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., call_timeout: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...
