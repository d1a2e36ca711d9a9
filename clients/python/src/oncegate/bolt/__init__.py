"""Bolt for Python: every listener in its conversation's turn.

``guard(app, gate)`` works with `App` and `AsyncApp`, over HTTP and Socket Mode, for events,
actions, commands, shortcuts, modals and lazy listeners. A listener that names an argument ``turn``
gets the turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from oncegate._aio import AsyncGate
from oncegate._clock import seconds
from oncegate._sync import Gate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from slack_bolt import App
    from slack_bolt.async_app import AsyncApp

    from oncegate._clock import Time

__all__ = ["guard"]


@overload
def guard(
    app: App, gate: Gate, *, wait: Time = 600.0, on_busy: Callable[..., object] | None = None
) -> None: ...
@overload
def guard(
    app: AsyncApp,
    gate: AsyncGate,
    *,
    wait: Time = 600.0,
    on_busy: Callable[..., Awaitable[object]] | None = None,
) -> None: ...
def guard(
    app: Any, gate: Any, *, wait: Time = 600.0, on_busy: Callable[..., Any] | None = None
) -> None:
    """Runs the listeners of the app in the turns of their deliveries.

    The turn begins before the acknowledgement, and only if a listener matches. Of several that match,
    one runs. The response to Slack:

    - granted: the listener runs and Bolt acknowledges. A listener that raises fails the turn.
    - handled before, or given up: acknowledged, without the listener.
    - another run has the event: refused (503) while Slack will deliver it again, so that a crash
      of that run loses nothing. The last delivery is acknowledged, and this process asks again
      for it.
    - another run has the interaction or command: acknowledged.
    - the thread is busy: acknowledged. The delivery waits in this process for at most `wait`
      (10 min). For interactions and commands `on_busy` is called first: it takes the arguments
      of a listener. With an `App` at most 256 deliveries wait; more are refused. With a `wait`
      of 0, an event is refused while Slack will deliver it again.
    - the server is unavailable: events are refused while Slack will deliver them again. For the
      rest, the gate's ``on_unavailable`` decides.

    Options and suggestions have no side effect: they pass without a turn.

    Bolt acknowledges events before the listener ends, so a crash under it loses the event. With
    ``App(process_before_response=True)`` it acknowledges afterwards, and Slack delivers again.
    Lazy functions that run in another process, as on AWS Lambda, are outside of the turn.
    """
    if isinstance(gate, AsyncGate):
        from oncegate.bolt._aio import guard_async

        guard_async(app, gate, seconds(wait), on_busy)
    elif isinstance(gate, Gate):
        from oncegate.bolt._sync import guard_sync

        guard_sync(app, gate, seconds(wait), on_busy)
    else:
        raise TypeError("guard takes an App with a Gate, or an AsyncApp with an AsyncGate")
