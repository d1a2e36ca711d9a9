from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from oncegate.v1 import event_pb2 as _event_pb2
from oncegate.v1 import idempotency_service_pb2 as _idempotency_service_pb2
from oncegate.v1 import session_pb2 as _session_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BeginTurnRequest(_message.Message):
    __slots__ = ("event", "session", "holder", "request_id", "claim_ttl", "lease_ttl", "wait", "epic_id", "max_attempts", "labels", "payload_digest", "grace")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    EVENT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CLAIM_TTL_FIELD_NUMBER: _ClassVar[int]
    LEASE_TTL_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    EPIC_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    GRACE_FIELD_NUMBER: _ClassVar[int]
    event: _event_pb2.EventKey
    session: _session_pb2.SessionKey
    holder: str
    request_id: str
    claim_ttl: _duration_pb2.Duration
    lease_ttl: _duration_pb2.Duration
    wait: _duration_pb2.Duration
    epic_id: str
    max_attempts: int
    labels: _containers.ScalarMap[str, str]
    payload_digest: bytes
    grace: _duration_pb2.Duration
    def __init__(self, event: _Optional[_Union[_event_pb2.EventKey, _Mapping]] = ..., session: _Optional[_Union[_session_pb2.SessionKey, _Mapping]] = ..., holder: _Optional[str] = ..., request_id: _Optional[str] = ..., claim_ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., lease_ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., wait: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., epic_id: _Optional[str] = ..., max_attempts: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., payload_digest: _Optional[bytes] = ..., grace: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class BeginTurnResponse(_message.Message):
    __slots__ = ("granted", "duplicate", "in_progress", "busy", "gave_up")
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    IN_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    GAVE_UP_FIELD_NUMBER: _ClassVar[int]
    granted: TurnGranted
    duplicate: TurnDuplicate
    in_progress: TurnInProgress
    busy: _session_pb2.LeaseHeld
    gave_up: TurnGaveUp
    def __init__(self, granted: _Optional[_Union[TurnGranted, _Mapping]] = ..., duplicate: _Optional[_Union[TurnDuplicate, _Mapping]] = ..., in_progress: _Optional[_Union[TurnInProgress, _Mapping]] = ..., busy: _Optional[_Union[_session_pb2.LeaseHeld, _Mapping]] = ..., gave_up: _Optional[_Union[TurnGaveUp, _Mapping]] = ...) -> None: ...

class TurnGranted(_message.Message):
    __slots__ = ("turn",)
    TURN_FIELD_NUMBER: _ClassVar[int]
    turn: Turn
    def __init__(self, turn: _Optional[_Union[Turn, _Mapping]] = ...) -> None: ...

class TurnDuplicate(_message.Message):
    __slots__ = ("event", "result", "result_type")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    RESULT_TYPE_FIELD_NUMBER: _ClassVar[int]
    event: _event_pb2.ProcessedEvent
    result: bytes
    result_type: str
    def __init__(self, event: _Optional[_Union[_event_pb2.ProcessedEvent, _Mapping]] = ..., result: _Optional[bytes] = ..., result_type: _Optional[str] = ...) -> None: ...

class TurnGaveUp(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: _event_pb2.ProcessedEvent
    def __init__(self, event: _Optional[_Union[_event_pb2.ProcessedEvent, _Mapping]] = ...) -> None: ...

class TurnInProgress(_message.Message):
    __slots__ = ("holder", "remaining", "attempt", "retry_after", "elapsed")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_FIELD_NUMBER: _ClassVar[int]
    holder: str
    remaining: _duration_pb2.Duration
    attempt: int
    retry_after: _duration_pb2.Duration
    elapsed: _duration_pb2.Duration
    def __init__(self, holder: _Optional[str] = ..., remaining: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., attempt: _Optional[int] = ..., retry_after: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., elapsed: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Turn(_message.Message):
    __slots__ = ("turn_id", "attempt", "lease", "expire_time", "remaining", "elapsed")
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_FIELD_NUMBER: _ClassVar[int]
    turn_id: str
    attempt: int
    lease: _session_pb2.SessionLease
    expire_time: _timestamp_pb2.Timestamp
    remaining: _duration_pb2.Duration
    elapsed: _duration_pb2.Duration
    def __init__(self, turn_id: _Optional[str] = ..., attempt: _Optional[int] = ..., lease: _Optional[_Union[_session_pb2.SessionLease, _Mapping]] = ..., expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., remaining: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., elapsed: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class RenewTurnRequest(_message.Message):
    __slots__ = ("turn_id", "claim_ttl", "lease_ttl")
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    CLAIM_TTL_FIELD_NUMBER: _ClassVar[int]
    LEASE_TTL_FIELD_NUMBER: _ClassVar[int]
    turn_id: str
    claim_ttl: _duration_pb2.Duration
    lease_ttl: _duration_pb2.Duration
    def __init__(self, turn_id: _Optional[str] = ..., claim_ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., lease_ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class RenewTurnResponse(_message.Message):
    __slots__ = ("turn",)
    TURN_FIELD_NUMBER: _ClassVar[int]
    turn: Turn
    def __init__(self, turn: _Optional[_Union[Turn, _Mapping]] = ...) -> None: ...

class FinishTurnRequest(_message.Message):
    __slots__ = ("turn_id", "outcome", "result", "ttl", "detail", "result_type")
    TURN_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    RESULT_TYPE_FIELD_NUMBER: _ClassVar[int]
    turn_id: str
    outcome: _event_pb2.TurnOutcome
    result: bytes
    ttl: _duration_pb2.Duration
    detail: str
    result_type: str
    def __init__(self, turn_id: _Optional[str] = ..., outcome: _Optional[_Union[_event_pb2.TurnOutcome, str]] = ..., result: _Optional[bytes] = ..., ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., detail: _Optional[str] = ..., result_type: _Optional[str] = ...) -> None: ...

class FinishTurnResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: _event_pb2.ProcessedEvent
    def __init__(self, event: _Optional[_Union[_event_pb2.ProcessedEvent, _Mapping]] = ...) -> None: ...

class RunTurnRequest(_message.Message):
    __slots__ = ("begin", "end")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    begin: BeginTurnRequest
    end: TurnEnd
    def __init__(self, begin: _Optional[_Union[BeginTurnRequest, _Mapping]] = ..., end: _Optional[_Union[TurnEnd, _Mapping]] = ...) -> None: ...

class TurnEnd(_message.Message):
    __slots__ = ("outcome", "result", "ttl", "detail", "result_type")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    RESULT_TYPE_FIELD_NUMBER: _ClassVar[int]
    outcome: _event_pb2.TurnOutcome
    result: bytes
    ttl: _duration_pb2.Duration
    detail: str
    result_type: str
    def __init__(self, outcome: _Optional[_Union[_event_pb2.TurnOutcome, str]] = ..., result: _Optional[bytes] = ..., ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., detail: _Optional[str] = ..., result_type: _Optional[str] = ...) -> None: ...

class RunTurnResponse(_message.Message):
    __slots__ = ("queued", "granted", "renewed", "duplicate", "in_progress", "busy", "finished", "gave_up", "waiting", "alive")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    RENEWED_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    IN_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    GAVE_UP_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    queued: _idempotency_service_pb2.LeaseQueued
    granted: TurnGranted
    renewed: TurnRenewed
    duplicate: TurnDuplicate
    in_progress: TurnInProgress
    busy: _session_pb2.LeaseHeld
    finished: TurnFinished
    gave_up: TurnGaveUp
    waiting: _session_pb2.SessionWaiting
    alive: _session_pb2.StreamAlive
    def __init__(self, queued: _Optional[_Union[_idempotency_service_pb2.LeaseQueued, _Mapping]] = ..., granted: _Optional[_Union[TurnGranted, _Mapping]] = ..., renewed: _Optional[_Union[TurnRenewed, _Mapping]] = ..., duplicate: _Optional[_Union[TurnDuplicate, _Mapping]] = ..., in_progress: _Optional[_Union[TurnInProgress, _Mapping]] = ..., busy: _Optional[_Union[_session_pb2.LeaseHeld, _Mapping]] = ..., finished: _Optional[_Union[TurnFinished, _Mapping]] = ..., gave_up: _Optional[_Union[TurnGaveUp, _Mapping]] = ..., waiting: _Optional[_Union[_session_pb2.SessionWaiting, _Mapping]] = ..., alive: _Optional[_Union[_session_pb2.StreamAlive, _Mapping]] = ...) -> None: ...

class TurnRenewed(_message.Message):
    __slots__ = ("turn",)
    TURN_FIELD_NUMBER: _ClassVar[int]
    turn: Turn
    def __init__(self, turn: _Optional[_Union[Turn, _Mapping]] = ...) -> None: ...

class TurnFinished(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: _event_pb2.ProcessedEvent
    def __init__(self, event: _Optional[_Union[_event_pb2.ProcessedEvent, _Mapping]] = ...) -> None: ...
