"""A lease: HoldSessionLease, then RenewSessionLease and ReleaseSessionLease."""

from __future__ import annotations

import logging
from typing import Any

from oncegate import _errors as errors
from oncegate._clock import duration, span
from oncegate._hold import Hold, Terms, lease_span
from oncegate._io import Io, Stream, call_until
from oncegate._wire import HOLD_LEASE, RELEASE_LEASE, RENEW_LEASE, Failure
from oncegate.v1 import idempotency_service_pb2 as pb
from oncegate.v1 import session_pb2 as sessions

LOG = logging.getLogger("oncegate")

RELEASING = 5.0
"""The effort for a release."""


class LeaseFlow(Hold):
    """The state and the flows of one lease."""

    lost_error = errors.LeaseLost

    def __init__(self, io: Io, terms: Terms, request: pb.HoldSessionLeaseRequest) -> None:
        super().__init__(io, terms)
        self.lease = sessions.SessionLease()
        self._request = request

    async def _open(self, wait: float) -> Stream[Any, Any]:
        self._request.wait.CopyFrom(duration(wait))
        return await self._io.open(HOLD_LEASE, self._request, more=False)

    def _granted(self, message: pb.HoldSessionLeaseResponse) -> bool:
        match message.WhichOneof("news"):
            case "granted":
                self.lease = message.granted.lease
                self.fence = self.lease.fencing_token
                return True
            case "queued":
                self.on_queued(message.queued.position)
            case "held":
                held = message.held
                raise errors.Busy(held.holder, held.queue_length, span(held.retry_after))
            case _:
                pass
        return False

    async def _make_sure(self) -> None:
        """One renewal beside the stream: from then on the lease outlives the stream."""
        self._trust(*lease_span(self.lease), self._sent)
        await self._confirm()

    def _news(self, message: pb.HoldSessionLeaseResponse) -> None:
        match message.WhichOneof("news"):
            case "renewed":
                self._trust(*lease_span(message.renewed.lease), self._sent)
            case "waiting":
                self.waiters = message.waiting.waiters
            case _:
                pass

    async def _renew(self, until: float) -> None:
        request = pb.RenewSessionLeaseRequest(
            session=self._request.session,
            lease_id=self.lease.lease_id,
            ttl=duration(self.terms.ttl),
        )
        response, sent = await self._call_renew(RENEW_LEASE, request, until)
        self._trust(*lease_span(response.lease), sent)

    async def release(self) -> None:
        """Releases it, and waits for the answer. An unreachable server lets it expire."""
        if self._close():
            await self._give_back("")

    async def _give_back(self, detail: str) -> None:
        request = pb.ReleaseSessionLeaseRequest(
            session=self._request.session, lease_id=self.lease.lease_id
        )
        try:
            await call_until(self._io, RELEASE_LEASE, request, self._io.now() + RELEASING)
        except (Failure, errors.Closed) as failure:
            LOG.warning(
                "the release of a lease failed: %s; the server frees it when its TTL ends", failure
            )
        finally:
            self._hang_up()
