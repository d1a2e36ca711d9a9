"""A local fake of Slack, for demonstrations and tests of bots."""

from .events import Attempt, Delivery, mention
from .slack import FakeSlack
from .web_api import Call

__all__ = ["Attempt", "Call", "Delivery", "FakeSlack", "mention"]
