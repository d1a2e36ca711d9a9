"""Socket Mode: the bot connects, and acknowledges each envelope."""

import asyncio
import json
import uuid
from typing import Any

from aiohttp import WSMsgType, web

from .events import APP, Attempt, Delivery

PING_SECONDS = 10


class SocketModeTransport:
    """Delivers to the connections of one app in turn.

    An envelope may be acknowledged over any connection, also after it was sent again.
    """

    def __init__(self, ack_timeout: float) -> None:
        self._ack_timeout = ack_timeout
        self.opened = 0
        """How many connections there were so far, the open ones included."""
        self._connections: dict[web.WebSocketResponse, str] = {}
        self._connected = asyncio.Event()
        self._sent: dict[str, Delivery] = {}
        self._next = 0

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """One connection, until either side closes it."""
        connection = web.WebSocketResponse(heartbeat=PING_SECONDS)
        await connection.prepare(request)
        self.opened += 1
        self._connections[connection] = f"connection {self.opened}"
        try:
            await connection.send_json(self._hello())
            self._connected.set()
            async for message in connection:
                if message.type == WSMsgType.TEXT:
                    self._acknowledge(json.loads(message.data))
        finally:
            del self._connections[connection]
            if not self._connections:
                self._connected.clear()
        return connection

    async def attempt(self, delivery: Delivery, attempt: Attempt, reason: str | None) -> str:
        """Returns `ok`, or why Slack delivers again."""
        envelope = str(uuid.uuid5(uuid.NAMESPACE_OID, delivery.event_id))
        self._sent[envelope] = delivery
        try:
            async with asyncio.timeout(self._ack_timeout):
                connection = await self._pick()
                attempt.receiver = self._connections[connection]
                await connection.send_json(
                    {
                        "envelope_id": envelope,
                        "type": "events_api",
                        "accepts_response_payload": False,
                        "payload": delivery.payload,
                        "retry_attempt": attempt.number,
                        "retry_reason": reason or "",
                    }
                )
                while not delivery.accepted and connection in self._connections:
                    await asyncio.sleep(0.02)
        except (TimeoutError, ConnectionError):
            return "timeout"
        return "ok" if delivery.accepted else "connection_failed"

    async def refresh(self) -> None:
        """Asks all connections to reconnect, as Slack does every few hours."""
        for connection in list(self._connections):
            await connection.send_json(
                {
                    "type": "disconnect",
                    "reason": "refresh_requested",
                    "debug_info": {"host": "fake"},
                }
            )

    async def _pick(self) -> web.WebSocketResponse:
        await self._connected.wait()
        connections = list(self._connections)
        self._next += 1
        return connections[self._next % len(connections)]

    def _acknowledge(self, message: dict[str, Any]) -> None:
        if delivery := self._sent.get(message.get("envelope_id", "")):
            delivery.acknowledge()

    def _hello(self) -> dict[str, Any]:
        return {
            "type": "hello",
            "num_connections": len(self._connections),
            "connection_info": {"app_id": APP},
            "debug_info": {"host": "fake", "approximate_connection_time": 18060},
        }
