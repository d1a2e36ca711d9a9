from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from oncegate.v1 import event_pb2 as _event_pb2
from oncegate.v1 import session_pb2 as _session_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SessionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SESSION_STATE_UNSPECIFIED: _ClassVar[SessionState]
    SESSION_STATE_HELD: _ClassVar[SessionState]
    SESSION_STATE_FREE: _ClassVar[SessionState]
SESSION_STATE_UNSPECIFIED: SessionState
SESSION_STATE_HELD: SessionState
SESSION_STATE_FREE: SessionState

class Session(_message.Message):
    __slots__ = ("team_id", "session_id", "state", "holder", "fencing_token", "acquire_time", "expire_time", "remaining", "epic_id", "labels", "waiters", "consumer")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TEAM_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    FENCING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ACQUIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    EPIC_ID_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    WAITERS_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_FIELD_NUMBER: _ClassVar[int]
    team_id: str
    session_id: str
    state: SessionState
    holder: str
    fencing_token: int
    acquire_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    remaining: _duration_pb2.Duration
    epic_id: str
    labels: _containers.ScalarMap[str, str]
    waiters: int
    consumer: str
    def __init__(self, team_id: _Optional[str] = ..., session_id: _Optional[str] = ..., state: _Optional[_Union[SessionState, str]] = ..., holder: _Optional[str] = ..., fencing_token: _Optional[int] = ..., acquire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., remaining: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., epic_id: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., waiters: _Optional[int] = ..., consumer: _Optional[str] = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: _session_pb2.SessionKey
    def __init__(self, session: _Optional[_Union[_session_pb2.SessionKey, _Mapping]] = ...) -> None: ...

class GetSessionResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: Session
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ("team_id", "state", "page_size", "page_token")
    TEAM_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    team_id: str
    state: SessionState
    page_size: int
    page_token: str
    def __init__(self, team_id: _Optional[str] = ..., state: _Optional[_Union[SessionState, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ("sessions", "next_page_token")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    next_page_token: str
    def __init__(self, sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class BindEpicRequest(_message.Message):
    __slots__ = ("session", "epic_id", "actor", "reason")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPIC_ID_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    session: _session_pb2.SessionKey
    epic_id: str
    actor: str
    reason: str
    def __init__(self, session: _Optional[_Union[_session_pb2.SessionKey, _Mapping]] = ..., epic_id: _Optional[str] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class BindEpicResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: Session
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class ForceReleaseSessionLeaseRequest(_message.Message):
    __slots__ = ("session", "actor", "reason")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    session: _session_pb2.SessionKey
    actor: str
    reason: str
    def __init__(self, session: _Optional[_Union[_session_pb2.SessionKey, _Mapping]] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ForceReleaseSessionLeaseResponse(_message.Message):
    __slots__ = ("released", "session")
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    released: bool
    session: Session
    def __init__(self, released: bool = ..., session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("session", "actor", "reason")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    session: _session_pb2.SessionKey
    actor: str
    reason: str
    def __init__(self, session: _Optional[_Union[_session_pb2.SessionKey, _Mapping]] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class CloseSessionResponse(_message.Message):
    __slots__ = ("closed",)
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    closed: bool
    def __init__(self, closed: bool = ...) -> None: ...

class ListEventsRequest(_message.Message):
    __slots__ = ("team_id", "state", "outcome", "newer_than", "older_than", "page_size", "page_token")
    TEAM_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    NEWER_THAN_FIELD_NUMBER: _ClassVar[int]
    OLDER_THAN_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    team_id: str
    state: _event_pb2.EventState
    outcome: _event_pb2.TurnOutcome
    newer_than: _duration_pb2.Duration
    older_than: _duration_pb2.Duration
    page_size: int
    page_token: str
    def __init__(self, team_id: _Optional[str] = ..., state: _Optional[_Union[_event_pb2.EventState, str]] = ..., outcome: _Optional[_Union[_event_pb2.TurnOutcome, str]] = ..., newer_than: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., older_than: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListEventsResponse(_message.Message):
    __slots__ = ("events", "next_page_token", "read_time")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    READ_TIME_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[_event_pb2.ProcessedEvent]
    next_page_token: str
    read_time: _timestamp_pb2.Timestamp
    def __init__(self, events: _Optional[_Iterable[_Union[_event_pb2.ProcessedEvent, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., read_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ForgetEventRequest(_message.Message):
    __slots__ = ("event", "actor", "reason")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    event: _event_pb2.EventKey
    actor: str
    reason: str
    def __init__(self, event: _Optional[_Union[_event_pb2.EventKey, _Mapping]] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ForgetEventResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: _event_pb2.ProcessedEvent
    def __init__(self, event: _Optional[_Union[_event_pb2.ProcessedEvent, _Mapping]] = ...) -> None: ...

class GetStatsRequest(_message.Message):
    __slots__ = ("team_id",)
    TEAM_ID_FIELD_NUMBER: _ClassVar[int]
    team_id: str
    def __init__(self, team_id: _Optional[str] = ...) -> None: ...

class GetStatsResponse(_message.Message):
    __slots__ = ("events", "expired_events", "sessions", "held_sessions", "waiters")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_EVENTS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    HELD_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    WAITERS_FIELD_NUMBER: _ClassVar[int]
    events: int
    expired_events: int
    sessions: int
    held_sessions: int
    waiters: int
    def __init__(self, events: _Optional[int] = ..., expired_events: _Optional[int] = ..., sessions: _Optional[int] = ..., held_sessions: _Optional[int] = ..., waiters: _Optional[int] = ...) -> None: ...
