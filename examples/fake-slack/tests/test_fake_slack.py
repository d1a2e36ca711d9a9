"""The fake delivers as Slack does: these tests play the bot."""

from aiohttp import ClientSession, web
from aiohttp.test_utils import BaseTestServer, TestServer

from fake_slack import FakeSlack

TIME_SCALE = 0.001
STOPPED = "http://127.0.0.1:1/"


def url(bot: BaseTestServer) -> str:
    return str(bot.make_url("/"))


async def test_a_refused_event_is_delivered_again_three_times() -> None:
    retries = []

    async def refuse(request: web.Request) -> web.Response:
        headers = request.headers
        retries.append((headers.get("X-Slack-Retry-Num"), headers.get("X-Slack-Retry-Reason")))
        return web.Response(status=503)

    app = web.Application()
    app.router.add_post("/", refuse)
    async with TestServer(app) as bot, FakeSlack([url(bot)], time_scale=TIME_SCALE) as slack:
        delivery = slack.mention("hello")
        await slack.until(lambda: delivery.outcomes == ["http_error"] * 4)
    assert retries == [(None, None), *((str(number), "http_error") for number in (1, 2, 3))]


async def test_a_replica_that_does_not_run_is_passed_over() -> None:
    async def accept(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_post("/", accept)
    async with TestServer(app) as bot, FakeSlack([STOPPED, url(bot)]) as slack:
        delivery = slack.mention("hello")
        await slack.until(lambda: delivery.accepted)
    assert delivery.outcomes == ["ok"]


async def test_an_envelope_may_be_acknowledged_late_and_over_another_connection() -> None:
    async with FakeSlack(time_scale=TIME_SCALE) as slack, ClientSession() as session:
        environment = slack.environment
        answer = await session.post(
            environment["SLACK_API_URL"] + "apps.connections.open",
            headers={"Authorization": f"Bearer {environment['SLACK_APP_TOKEN']}"},
        )
        link = (await answer.json())["url"]
        async with session.ws_connect(link) as first, session.ws_connect(link) as second:
            hellos = [await connection.receive_json() for connection in (first, second)]
            delivery = slack.mention("hello")
            await slack.until(lambda: delivery.outcomes == ["timeout", None])
            await first.send_json({"envelope_id": (await second.receive_json())["envelope_id"]})
            again = await first.receive_json()
            await slack.until(lambda: delivery.accepted)
    assert [hello["num_connections"] for hello in hellos] == [1, 2]
    assert (again["retry_attempt"], again["retry_reason"]) == (1, "timeout")
    assert delivery.outcomes == ["timeout", "ok"]


async def test_calls_need_their_token() -> None:
    async with FakeSlack() as slack, ClientSession() as session:
        method = slack.environment["SLACK_API_URL"] + "chat.postMessage"
        answer = await session.post(method, headers={"Authorization": "Bearer xoxb-other"})
        assert await answer.json() == {"ok": False, "error": "invalid_auth"}
    assert slack.web_api.calls == []
