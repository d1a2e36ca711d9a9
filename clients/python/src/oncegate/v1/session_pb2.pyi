from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from oncegate.v1 import delivery_pb2 as _delivery_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SessionScope(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SESSION_SCOPE_UNSPECIFIED: _ClassVar[SessionScope]
    SESSION_SCOPE_THREAD: _ClassVar[SessionScope]
    SESSION_SCOPE_CHANNEL: _ClassVar[SessionScope]
    SESSION_SCOPE_USER: _ClassVar[SessionScope]
SESSION_SCOPE_UNSPECIFIED: SessionScope
SESSION_SCOPE_THREAD: SessionScope
SESSION_SCOPE_CHANNEL: SessionScope
SESSION_SCOPE_USER: SessionScope

class SessionKey(_message.Message):
    __slots__ = ("team_id", "session_id", "thread", "slack", "slack_payload", "delivery", "consumer", "scope")
    TEAM_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    THREAD_FIELD_NUMBER: _ClassVar[int]
    SLACK_FIELD_NUMBER: _ClassVar[int]
    SLACK_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    team_id: str
    session_id: str
    thread: ThreadKey
    slack: _delivery_pb2.SlackEvent
    slack_payload: bytes
    delivery: _delivery_pb2.Delivery
    consumer: str
    scope: SessionScope
    def __init__(self, team_id: _Optional[str] = ..., session_id: _Optional[str] = ..., thread: _Optional[_Union[ThreadKey, _Mapping]] = ..., slack: _Optional[_Union[_delivery_pb2.SlackEvent, _Mapping]] = ..., slack_payload: _Optional[bytes] = ..., delivery: _Optional[_Union[_delivery_pb2.Delivery, _Mapping]] = ..., consumer: _Optional[str] = ..., scope: _Optional[_Union[SessionScope, str]] = ...) -> None: ...

class ThreadKey(_message.Message):
    __slots__ = ("channel_id", "thread_ts")
    CHANNEL_ID_FIELD_NUMBER: _ClassVar[int]
    THREAD_TS_FIELD_NUMBER: _ClassVar[int]
    channel_id: str
    thread_ts: str
    def __init__(self, channel_id: _Optional[str] = ..., thread_ts: _Optional[str] = ...) -> None: ...

class SessionLease(_message.Message):
    __slots__ = ("team_id", "session_id", "lease_id", "fencing_token", "holder", "acquire_time", "expire_time", "remaining", "epic_id", "labels", "elapsed", "consumer")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TEAM_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    FENCING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    ACQUIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    EPIC_ID_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_FIELD_NUMBER: _ClassVar[int]
    team_id: str
    session_id: str
    lease_id: str
    fencing_token: int
    holder: str
    acquire_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    remaining: _duration_pb2.Duration
    epic_id: str
    labels: _containers.ScalarMap[str, str]
    elapsed: _duration_pb2.Duration
    consumer: str
    def __init__(self, team_id: _Optional[str] = ..., session_id: _Optional[str] = ..., lease_id: _Optional[str] = ..., fencing_token: _Optional[int] = ..., holder: _Optional[str] = ..., acquire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., remaining: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., epic_id: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., elapsed: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., consumer: _Optional[str] = ...) -> None: ...

class LeaseHeld(_message.Message):
    __slots__ = ("holder", "expire_time", "remaining", "queue_length", "retry_after", "elapsed")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    QUEUE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_FIELD_NUMBER: _ClassVar[int]
    holder: str
    expire_time: _timestamp_pb2.Timestamp
    remaining: _duration_pb2.Duration
    queue_length: int
    retry_after: _duration_pb2.Duration
    elapsed: _duration_pb2.Duration
    def __init__(self, holder: _Optional[str] = ..., expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., remaining: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., queue_length: _Optional[int] = ..., retry_after: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., elapsed: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SessionWaiting(_message.Message):
    __slots__ = ("waiters",)
    WAITERS_FIELD_NUMBER: _ClassVar[int]
    waiters: int
    def __init__(self, waiters: _Optional[int] = ...) -> None: ...

class StreamAlive(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
