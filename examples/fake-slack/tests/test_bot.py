"""A guarded bot answers each message once, in order; without the guard it does not.

Every test runs over HTTP and over Socket Mode. The handler of the bot begins with a call of
`assistant.threads.setStatus`; a test that does not let Slack answer it has a slow handler.
"""

import pytest

from fake_slack import Delivery, FakeSlack

from .world import World

STATUS = "assistant.threads.setStatus"
POST = "chat.postMessage"


async def redeliver(slack: FakeSlack) -> Delivery:
    """An event is delivered again while its handler still runs.

    The acknowledgement is too late, or it is lost: Bolt for JavaScript sends it at once over
    Socket Mode.
    """
    with slack.web_api.holding(STATUS):
        delivery = slack.mention("hello", lose_ack=True)
        await slack.until(lambda: delivery.outcomes[1:] not in ([], [None]))
    return delivery


async def send_two(slack: FakeSlack) -> tuple[Delivery, Delivery]:
    """A second message comes into a thread whose first one is still handled."""
    with slack.web_api.holding(STATUS):
        first = slack.mention("first")
        await slack.until(lambda: len(slack.calls(STATUS)) == 1)
        second = slack.mention("second", first.thread)
        await slack.until(lambda: second.outcomes[:1] not in ([], [None]))
    return first, second


async def finish(slack: FakeSlack, delivery: Delivery) -> None:
    """All deliveries of the event have ended, and one more is accepted as a duplicate."""
    await slack.until(lambda: delivery.ended)
    again = slack.deliver(delivery.payload)
    await slack.until(lambda: again.accepted)


def steps(slack: FakeSlack) -> list[str]:
    """The handlers' calls in order: each begins with a status, and ends with an answer."""
    return [call.method for call in slack.calls(STATUS, POST)]


async def test_a_slow_event_is_answered_once(world: World) -> None:
    await world.start_bots()
    delivery = await redeliver(world.slack)
    await world.slack.until(lambda: world.slack.answers != [])
    await finish(world.slack, delivery)
    assert world.slack.answers == ["You said: hello"]
    assert steps(world.slack) == [STATUS, POST]


async def test_without_the_guard_a_slow_event_is_answered_twice(world: World) -> None:
    await world.start_bots(guarded=False)
    await redeliver(world.slack)
    await world.slack.until(lambda: len(world.slack.answers) >= 2)


async def test_messages_of_a_busy_thread_are_answered_in_order(world: World) -> None:
    await world.start_bots()
    first, second = await send_two(world.slack)
    await world.slack.until(lambda: len(world.slack.answers) == 2)
    await finish(world.slack, first)
    await finish(world.slack, second)
    assert world.slack.answers == ["You said: first", "You said: second"]
    assert steps(world.slack) == [STATUS, POST, STATUS, POST]


async def test_without_the_guard_a_busy_thread_has_two_runs(world: World) -> None:
    await world.start_bots(guarded=False)
    await send_two(world.slack)
    await world.slack.until(lambda: len(world.slack.answers) >= 2)
    assert steps(world.slack)[:2] == [STATUS, STATUS]


async def test_the_event_of_a_killed_bot_is_answered_by_another(world: World) -> None:
    await world.start_bots()  # before the event: its retries do not wait for the start of a bot
    with world.slack.web_api.holding(STATUS):
        delivery = world.slack.mention("hello")
        await world.slack.until(lambda: steps(world.slack) == [STATUS])
        await world.kill(world.caller(world.slack.calls(STATUS)[0]))
    await world.slack.until(lambda: world.slack.answers != [])
    await finish(world.slack, delivery)
    assert world.slack.answers == ["You said: hello"]
    assert steps(world.slack) == [STATUS, STATUS, POST]


@pytest.mark.parametrize("signal", ["kill", "terminate"])
async def test_a_restart_of_oncegate_is_not_noticed(world: World, signal: str) -> None:
    await world.start_bots()
    with world.slack.web_api.holding(STATUS):
        delivery = world.slack.mention("hello")
        await world.slack.until(lambda: steps(world.slack) == [STATUS])
        getattr(world.server, signal)()
        await world.server.wait()
        await world.start_oncegate()
    await world.slack.until(lambda: world.slack.answers != [])
    await finish(world.slack, delivery)
    assert world.slack.answers == ["You said: hello"]
    assert steps(world.slack) == [STATUS, POST]


@pytest.mark.parametrize("world", ["socket_mode"], indirect=True)
async def test_a_refreshed_connection_is_not_noticed(world: World) -> None:
    await world.start_bots()
    with world.slack.web_api.holding(STATUS):
        delivery = world.slack.mention("hello")
        await world.slack.until(lambda: steps(world.slack) == [STATUS])
        await world.slack.socket_mode.refresh()
        await world.slack.until(lambda: world.slack.socket_mode.opened == 4)
    await world.slack.until(lambda: world.slack.answers != [])
    await finish(world.slack, delivery)
    assert world.slack.answers == ["You said: hello"]
    assert steps(world.slack) == [STATUS, POST]
