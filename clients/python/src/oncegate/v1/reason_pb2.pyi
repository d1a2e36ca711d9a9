from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    REASON_INVALID_FIELD: _ClassVar[Reason]
    REASON_NO_KEY: _ClassVar[Reason]
    REASON_UNREADABLE_REQUEST: _ClassVar[Reason]
    REASON_UNSTORABLE_TEXT: _ClassVar[Reason]
    REASON_NOT_FOUND: _ClassVar[Reason]
    REASON_LEASE_LOST: _ClassVar[Reason]
    REASON_MAX_HOLD: _ClassVar[Reason]
    REASON_CLAIM_LOST: _ClassVar[Reason]
    REASON_STREAM_REPLACED: _ClassVar[Reason]
    REASON_EPIC_MISMATCH: _ClassVar[Reason]
    REASON_PAYLOAD_MISMATCH: _ClassVar[Reason]
    REASON_QUEUE_FULL: _ClassVar[Reason]
    REASON_TOO_MANY_CALLS: _ClassVar[Reason]
    REASON_TOO_MANY_CONNECTIONS: _ClassVar[Reason]
    REASON_LANE_FULL: _ClassVar[Reason]
    REASON_METADATA_TOO_LARGE: _ClassVar[Reason]
    REASON_MESSAGE_TOO_LARGE: _ClassVar[Reason]
    REASON_DRAINING: _ClassVar[Reason]
    REASON_STORE_UNAVAILABLE: _ClassVar[Reason]
    REASON_OUTCOME_UNKNOWN: _ClassVar[Reason]
    REASON_CONTENDED: _ClassVar[Reason]
    REASON_STORE_UNUSABLE: _ClassVar[Reason]
    REASON_REJECTED_BY_DATABASE: _ClassVar[Reason]
    REASON_CALL_TIMEOUT: _ClassVar[Reason]
    REASON_CANCELLED: _ClassVar[Reason]
    REASON_INTERNAL: _ClassVar[Reason]
    REASON_UNAUTHENTICATED: _ClassVar[Reason]
    REASON_TEAM_DENIED: _ClassVar[Reason]
    REASON_ROLE_DENIED: _ClassVar[Reason]
    REASON_QUOTA: _ClassVar[Reason]
REASON_UNSPECIFIED: Reason
REASON_INVALID_FIELD: Reason
REASON_NO_KEY: Reason
REASON_UNREADABLE_REQUEST: Reason
REASON_UNSTORABLE_TEXT: Reason
REASON_NOT_FOUND: Reason
REASON_LEASE_LOST: Reason
REASON_MAX_HOLD: Reason
REASON_CLAIM_LOST: Reason
REASON_STREAM_REPLACED: Reason
REASON_EPIC_MISMATCH: Reason
REASON_PAYLOAD_MISMATCH: Reason
REASON_QUEUE_FULL: Reason
REASON_TOO_MANY_CALLS: Reason
REASON_TOO_MANY_CONNECTIONS: Reason
REASON_LANE_FULL: Reason
REASON_METADATA_TOO_LARGE: Reason
REASON_MESSAGE_TOO_LARGE: Reason
REASON_DRAINING: Reason
REASON_STORE_UNAVAILABLE: Reason
REASON_OUTCOME_UNKNOWN: Reason
REASON_CONTENDED: Reason
REASON_STORE_UNUSABLE: Reason
REASON_REJECTED_BY_DATABASE: Reason
REASON_CALL_TIMEOUT: Reason
REASON_CANCELLED: Reason
REASON_INTERNAL: Reason
REASON_UNAUTHENTICATED: Reason
REASON_TEAM_DENIED: Reason
REASON_ROLE_DENIED: Reason
REASON_QUOTA: Reason
