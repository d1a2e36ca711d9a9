from google.protobuf import duration_pb2 as _duration_pb2
from oncegate.v1 import event_pb2 as _event_pb2
from oncegate.v1 import session_pb2 as _session_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MarkProcessedRequest(_message.Message):
    __slots__ = ("event", "ttl", "request_id", "payload_digest")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    event: _event_pb2.EventKey
    ttl: _duration_pb2.Duration
    request_id: str
    payload_digest: bytes
    def __init__(self, event: _Optional[_Union[_event_pb2.EventKey, _Mapping]] = ..., ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., request_id: _Optional[str] = ..., payload_digest: _Optional[bytes] = ...) -> None: ...

class MarkProcessedResponse(_message.Message):
    __slots__ = ("first", "event")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    first: bool
    event: _event_pb2.ProcessedEvent
    def __init__(self, first: bool = ..., event: _Optional[_Union[_event_pb2.ProcessedEvent, _Mapping]] = ...) -> None: ...

class BatchMarkProcessedRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[MarkProcessedRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[MarkProcessedRequest, _Mapping]]] = ...) -> None: ...

class BatchMarkProcessedResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[BatchMarkProcessedResult]
    def __init__(self, results: _Optional[_Iterable[_Union[BatchMarkProcessedResult, _Mapping]]] = ...) -> None: ...

class BatchMarkProcessedResult(_message.Message):
    __slots__ = ("response", "error")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    response: MarkProcessedResponse
    error: BatchItemError
    def __init__(self, response: _Optional[_Union[MarkProcessedResponse, _Mapping]] = ..., error: _Optional[_Union[BatchItemError, _Mapping]] = ...) -> None: ...

class BatchItemError(_message.Message):
    __slots__ = ("code", "message", "field", "reason")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    field: str
    reason: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class IsProcessedRequest(_message.Message):
    __slots__ = ("event", "include_result")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_RESULT_FIELD_NUMBER: _ClassVar[int]
    event: _event_pb2.EventKey
    include_result: bool
    def __init__(self, event: _Optional[_Union[_event_pb2.EventKey, _Mapping]] = ..., include_result: bool = ...) -> None: ...

class IsProcessedResponse(_message.Message):
    __slots__ = ("state", "processed", "event", "result", "result_type")
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROCESSED_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    RESULT_TYPE_FIELD_NUMBER: _ClassVar[int]
    state: _event_pb2.EventState
    processed: bool
    event: _event_pb2.ProcessedEvent
    result: bytes
    result_type: str
    def __init__(self, state: _Optional[_Union[_event_pb2.EventState, str]] = ..., processed: bool = ..., event: _Optional[_Union[_event_pb2.ProcessedEvent, _Mapping]] = ..., result: _Optional[bytes] = ..., result_type: _Optional[str] = ...) -> None: ...

class AcquireSessionLeaseRequest(_message.Message):
    __slots__ = ("session", "holder", "request_id", "ttl", "wait", "epic_id", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SESSION_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    EPIC_ID_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    session: _session_pb2.SessionKey
    holder: str
    request_id: str
    ttl: _duration_pb2.Duration
    wait: _duration_pb2.Duration
    epic_id: str
    labels: _containers.ScalarMap[str, str]
    def __init__(self, session: _Optional[_Union[_session_pb2.SessionKey, _Mapping]] = ..., holder: _Optional[str] = ..., request_id: _Optional[str] = ..., ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., wait: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., epic_id: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class AcquireSessionLeaseResponse(_message.Message):
    __slots__ = ("lease", "held")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    lease: _session_pb2.SessionLease
    held: _session_pb2.LeaseHeld
    def __init__(self, lease: _Optional[_Union[_session_pb2.SessionLease, _Mapping]] = ..., held: _Optional[_Union[_session_pb2.LeaseHeld, _Mapping]] = ...) -> None: ...

class HoldSessionLeaseRequest(_message.Message):
    __slots__ = ("session", "holder", "request_id", "ttl", "wait", "epic_id", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SESSION_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    EPIC_ID_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    session: _session_pb2.SessionKey
    holder: str
    request_id: str
    ttl: _duration_pb2.Duration
    wait: _duration_pb2.Duration
    epic_id: str
    labels: _containers.ScalarMap[str, str]
    def __init__(self, session: _Optional[_Union[_session_pb2.SessionKey, _Mapping]] = ..., holder: _Optional[str] = ..., request_id: _Optional[str] = ..., ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., wait: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., epic_id: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class HoldSessionLeaseResponse(_message.Message):
    __slots__ = ("queued", "granted", "renewed", "held", "waiting", "alive")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    RENEWED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    queued: LeaseQueued
    granted: LeaseGranted
    renewed: LeaseRenewed
    held: _session_pb2.LeaseHeld
    waiting: _session_pb2.SessionWaiting
    alive: _session_pb2.StreamAlive
    def __init__(self, queued: _Optional[_Union[LeaseQueued, _Mapping]] = ..., granted: _Optional[_Union[LeaseGranted, _Mapping]] = ..., renewed: _Optional[_Union[LeaseRenewed, _Mapping]] = ..., held: _Optional[_Union[_session_pb2.LeaseHeld, _Mapping]] = ..., waiting: _Optional[_Union[_session_pb2.SessionWaiting, _Mapping]] = ..., alive: _Optional[_Union[_session_pb2.StreamAlive, _Mapping]] = ...) -> None: ...

class LeaseQueued(_message.Message):
    __slots__ = ("position",)
    POSITION_FIELD_NUMBER: _ClassVar[int]
    position: int
    def __init__(self, position: _Optional[int] = ...) -> None: ...

class LeaseGranted(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: _session_pb2.SessionLease
    def __init__(self, lease: _Optional[_Union[_session_pb2.SessionLease, _Mapping]] = ...) -> None: ...

class LeaseRenewed(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: _session_pb2.SessionLease
    def __init__(self, lease: _Optional[_Union[_session_pb2.SessionLease, _Mapping]] = ...) -> None: ...

class RenewSessionLeaseRequest(_message.Message):
    __slots__ = ("session", "lease_id", "ttl")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    session: _session_pb2.SessionKey
    lease_id: str
    ttl: _duration_pb2.Duration
    def __init__(self, session: _Optional[_Union[_session_pb2.SessionKey, _Mapping]] = ..., lease_id: _Optional[str] = ..., ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class RenewSessionLeaseResponse(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: _session_pb2.SessionLease
    def __init__(self, lease: _Optional[_Union[_session_pb2.SessionLease, _Mapping]] = ...) -> None: ...

class ReleaseSessionLeaseRequest(_message.Message):
    __slots__ = ("session", "lease_id")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    session: _session_pb2.SessionKey
    lease_id: str
    def __init__(self, session: _Optional[_Union[_session_pb2.SessionKey, _Mapping]] = ..., lease_id: _Optional[str] = ...) -> None: ...

class ReleaseSessionLeaseResponse(_message.Message):
    __slots__ = ("released",)
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    released: bool
    def __init__(self, released: bool = ...) -> None: ...

class CheckSessionLeaseRequest(_message.Message):
    __slots__ = ("session", "fencing_token")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    FENCING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    session: _session_pb2.SessionKey
    fencing_token: int
    def __init__(self, session: _Optional[_Union[_session_pb2.SessionKey, _Mapping]] = ..., fencing_token: _Optional[int] = ...) -> None: ...

class CheckSessionLeaseResponse(_message.Message):
    __slots__ = ("current", "fencing_token")
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    FENCING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    current: bool
    fencing_token: int
    def __init__(self, current: bool = ..., fencing_token: _Optional[int] = ...) -> None: ...

class CleanupRequest(_message.Message):
    __slots__ = ("team_id", "older_than", "max_rows", "dry_run")
    TEAM_ID_FIELD_NUMBER: _ClassVar[int]
    OLDER_THAN_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    team_id: str
    older_than: _duration_pb2.Duration
    max_rows: int
    dry_run: bool
    def __init__(self, team_id: _Optional[str] = ..., older_than: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., max_rows: _Optional[int] = ..., dry_run: bool = ...) -> None: ...

class CleanupResponse(_message.Message):
    __slots__ = ("deleted_events", "deleted_sessions", "more")
    DELETED_EVENTS_FIELD_NUMBER: _ClassVar[int]
    DELETED_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    deleted_events: int
    deleted_sessions: int
    more: bool
    def __init__(self, deleted_events: _Optional[int] = ..., deleted_sessions: _Optional[int] = ..., more: bool = ...) -> None: ...
