from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Platform(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PLATFORM_UNSPECIFIED: _ClassVar[Platform]
    PLATFORM_SLACK: _ClassVar[Platform]
    PLATFORM_GITHUB: _ClassVar[Platform]
    PLATFORM_DISCORD: _ClassVar[Platform]
    PLATFORM_TELEGRAM: _ClassVar[Platform]
    PLATFORM_TEAMS: _ClassVar[Platform]
    PLATFORM_STRIPE: _ClassVar[Platform]
    PLATFORM_STANDARD_WEBHOOKS: _ClassVar[Platform]
PLATFORM_UNSPECIFIED: Platform
PLATFORM_SLACK: Platform
PLATFORM_GITHUB: Platform
PLATFORM_DISCORD: Platform
PLATFORM_TELEGRAM: Platform
PLATFORM_TEAMS: Platform
PLATFORM_STRIPE: Platform
PLATFORM_STANDARD_WEBHOOKS: Platform

class Delivery(_message.Message):
    __slots__ = ("platform", "headers", "body")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    platform: Platform
    headers: _containers.ScalarMap[str, str]
    body: bytes
    def __init__(self, platform: _Optional[_Union[Platform, str]] = ..., headers: _Optional[_Mapping[str, str]] = ..., body: _Optional[bytes] = ...) -> None: ...

class SlackEvent(_message.Message):
    __slots__ = ("event_id", "client_msg_id", "channel", "ts", "thread_ts", "action_id", "message_ts", "user_id", "type", "subtype", "trigger_id", "view_id", "block_id", "value", "action_ts")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_MSG_ID_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    TS_FIELD_NUMBER: _ClassVar[int]
    THREAD_TS_FIELD_NUMBER: _ClassVar[int]
    ACTION_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_TS_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SUBTYPE_FIELD_NUMBER: _ClassVar[int]
    TRIGGER_ID_FIELD_NUMBER: _ClassVar[int]
    VIEW_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_ID_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ACTION_TS_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    client_msg_id: str
    channel: str
    ts: str
    thread_ts: str
    action_id: str
    message_ts: str
    user_id: str
    type: str
    subtype: str
    trigger_id: str
    view_id: str
    block_id: str
    value: str
    action_ts: str
    def __init__(self, event_id: _Optional[str] = ..., client_msg_id: _Optional[str] = ..., channel: _Optional[str] = ..., ts: _Optional[str] = ..., thread_ts: _Optional[str] = ..., action_id: _Optional[str] = ..., message_ts: _Optional[str] = ..., user_id: _Optional[str] = ..., type: _Optional[str] = ..., subtype: _Optional[str] = ..., trigger_id: _Optional[str] = ..., view_id: _Optional[str] = ..., block_id: _Optional[str] = ..., value: _Optional[str] = ..., action_ts: _Optional[str] = ...) -> None: ...
