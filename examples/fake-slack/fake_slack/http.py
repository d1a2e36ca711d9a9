"""The Events API over HTTP: signed requests to the bot's request URLs."""

import hashlib
import hmac
import json
import time

import aiohttp

from .events import Attempt, Delivery


class HttpTransport:
    """Delivers to the replicas of one app in turn, as a load balancer does."""

    def __init__(self, urls: list[str], signing_secret: str, ack_timeout: float) -> None:
        self.urls = urls
        self._secret = signing_secret.encode()
        self._timeout = aiohttp.ClientTimeout(total=ack_timeout)
        self._next = 0

    async def attempt(self, delivery: Delivery, attempt: Attempt, reason: str | None) -> str:
        """Returns `ok`, or why Slack delivers again."""
        body = json.dumps(delivery.payload).encode()
        headers = self._signed(body)
        if reason:
            headers |= {
                "X-Slack-Retry-Num": str(attempt.number),
                "X-Slack-Retry-Reason": reason,
            }
        # A connection of its own for each request: one to a killed replica must not be reused.
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector, timeout=self._timeout) as session:
            for _ in self.urls:
                attempt.receiver = self.urls[self._next % len(self.urls)]
                self._next += 1
                try:
                    async with session.post(attempt.receiver, data=body, headers=headers) as answer:
                        if not answer.ok:
                            attempt.receiver += f" ({answer.status})"
                            return "http_error"
                        delivery.acknowledge()
                        return "ok" if delivery.accepted else "http_timeout"
                except aiohttp.ClientConnectorError:
                    continue  # This replica does not run; a load balancer takes the next one.
                except TimeoutError:
                    return "http_timeout"
                except aiohttp.ClientError:
                    return "connection_failed"
        return "connection_failed"

    def _signed(self, body: bytes) -> dict[str, str]:
        now = str(int(time.time()))
        signature = hmac.new(self._secret, f"v0:{now}:".encode() + body, hashlib.sha256)
        return {
            "Content-Type": "application/json",
            "User-Agent": "Slackbot 1.0 (+https://api.slack.com/robots)",
            "X-Slack-Request-Timestamp": now,
            "X-Slack-Signature": f"v0={signature.hexdigest()}",
        }
