"""``@gate.webhook``: a handler of HTTP requests that runs once for each delivery."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from oncegate._webhook._exchange import ANSWERED, Exchange, with_defaults
from oncegate._webhook._frameworks import with_request

if TYPE_CHECKING:
    from oncegate._aio import AsyncGate
    from oncegate._aio_scopes import AsyncTurn
    from oncegate._delivery import Delivery
    from oncegate._options import TurnOptions
    from oncegate._sync import Gate
    from oncegate._sync_scopes import Turn

Handler = TypeVar("Handler", bound=Callable[..., Any])


def async_webhook(
    gate: AsyncGate, make_delivery: Callable[..., Delivery], options: TurnOptions
) -> Callable[[Handler], Handler]:
    """See `AsyncGate.webhook`."""

    def decorate(function: Any) -> Any:
        if not inspect.iscoroutinefunction(function):
            raise TypeError("a handler that is not a coroutine function needs a Gate")

        @functools.wraps(function)
        async def endpoint(*args: Any, **kwargs: Any) -> Any:
            exchange = Exchange.of(args, kwargs)
            delivery = exchange.delivery(make_delivery, await exchange.body_async())

            async def handle(turn: AsyncTurn) -> Any:
                try:
                    value = await function(*args, **kwargs)
                except Exception as error:  # noqa: BLE001 - `raised` decides
                    return exchange.raised(error, turn)
                return exchange.handled(value)

            chosen = with_defaults(options, delivery)
            try:
                return exchange.answer(await gate.run(handle, delivery, **chosen))
            except ANSWERED as error:
                return exchange.answer_error(error)

        return with_request(endpoint)

    return decorate


def sync_webhook(
    gate: Gate, make_delivery: Callable[..., Delivery], options: TurnOptions
) -> Callable[[Handler], Handler]:
    """See `Gate.webhook`."""

    def decorate(function: Any) -> Any:
        if inspect.iscoroutinefunction(function):
            raise TypeError("a handler that is a coroutine function needs an AsyncGate")

        @functools.wraps(function)
        def endpoint(*args: Any, **kwargs: Any) -> Any:
            exchange = Exchange.of(args, kwargs)
            delivery = exchange.delivery(make_delivery, exchange.body())

            def handle(turn: Turn) -> Any:
                try:
                    value = function(*args, **kwargs)
                except Exception as error:  # noqa: BLE001 - `raised` decides
                    return exchange.raised(error, turn)
                return exchange.handled(value)

            chosen = with_defaults(options, delivery)
            try:
                return exchange.answer(gate.run(handle, delivery, **chosen))
            except ANSWERED as error:
                return exchange.answer_error(error)

        return with_request(endpoint)

    return decorate
