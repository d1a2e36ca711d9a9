from google.protobuf import timestamp_pb2 as _timestamp_pb2
from oncegate.v1 import delivery_pb2 as _delivery_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EventState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_STATE_UNSPECIFIED: _ClassVar[EventState]
    EVENT_STATE_NOT_SEEN: _ClassVar[EventState]
    EVENT_STATE_IN_PROGRESS: _ClassVar[EventState]
    EVENT_STATE_PROCESSED: _ClassVar[EventState]

class TurnOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TURN_OUTCOME_UNSPECIFIED: _ClassVar[TurnOutcome]
    TURN_OUTCOME_SUCCEEDED: _ClassVar[TurnOutcome]
    TURN_OUTCOME_FAILED: _ClassVar[TurnOutcome]
    TURN_OUTCOME_GAVE_UP: _ClassVar[TurnOutcome]
    TURN_OUTCOME_REJECTED: _ClassVar[TurnOutcome]
EVENT_STATE_UNSPECIFIED: EventState
EVENT_STATE_NOT_SEEN: EventState
EVENT_STATE_IN_PROGRESS: EventState
EVENT_STATE_PROCESSED: EventState
TURN_OUTCOME_UNSPECIFIED: TurnOutcome
TURN_OUTCOME_SUCCEEDED: TurnOutcome
TURN_OUTCOME_FAILED: TurnOutcome
TURN_OUTCOME_GAVE_UP: TurnOutcome
TURN_OUTCOME_REJECTED: TurnOutcome

class EventKey(_message.Message):
    __slots__ = ("team_id", "event_id", "slack", "slack_payload", "delivery", "aliases", "consumer", "each_use")
    TEAM_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    SLACK_FIELD_NUMBER: _ClassVar[int]
    SLACK_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_FIELD_NUMBER: _ClassVar[int]
    EACH_USE_FIELD_NUMBER: _ClassVar[int]
    team_id: str
    event_id: str
    slack: _delivery_pb2.SlackEvent
    slack_payload: bytes
    delivery: _delivery_pb2.Delivery
    aliases: _containers.RepeatedScalarFieldContainer[str]
    consumer: str
    each_use: bool
    def __init__(self, team_id: _Optional[str] = ..., event_id: _Optional[str] = ..., slack: _Optional[_Union[_delivery_pb2.SlackEvent, _Mapping]] = ..., slack_payload: _Optional[bytes] = ..., delivery: _Optional[_Union[_delivery_pb2.Delivery, _Mapping]] = ..., aliases: _Optional[_Iterable[str]] = ..., consumer: _Optional[str] = ..., each_use: bool = ...) -> None: ...

class ProcessedEvent(_message.Message):
    __slots__ = ("team_id", "event_id", "state", "process_time", "expire_time", "holder", "attempt", "outcome", "consumer", "detail")
    TEAM_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROCESS_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    team_id: str
    event_id: str
    state: EventState
    process_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    holder: str
    attempt: int
    outcome: TurnOutcome
    consumer: str
    detail: str
    def __init__(self, team_id: _Optional[str] = ..., event_id: _Optional[str] = ..., state: _Optional[_Union[EventState, str]] = ..., process_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., holder: _Optional[str] = ..., attempt: _Optional[int] = ..., outcome: _Optional[_Union[TurnOutcome, str]] = ..., consumer: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...
