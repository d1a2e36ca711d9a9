"""Deliveries that are larger than the server takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from oncegate import Delivery, Gate, github, slack
from oncegate.testing import Server


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    with Server() as server, Gate(server.address) as gate:
        yield gate


def body(delivery: Delivery) -> bytes:
    assert delivery.payload is not None
    return delivery.payload.body


def push(commits: int) -> dict[str, Any]:
    commit = {"id": "c" * 40, "message": "m" * 4000, "added": ["file"] * 100}
    repository = {"id": 1, "full_name": "octo/repo", "owner": {"id": 21, "login": "octo"}}
    return {"ref": "refs/heads/main", "commits": [commit] * commits, "repository": repository}


def message(blocks: int) -> dict[str, Any]:
    text = {"type": "section", "text": {"type": "mrkdwn", "text": "é" * 3000}}
    event = {
        "type": "message", "channel": "C1", "user": "U1", "ts": "1700000001.000100",
        "text": "é" * 40_000, "blocks": [text] * blocks,
    }  # fmt: skip
    return {"type": "event_callback", "team_id": "T1", "event_id": "Ev1", "event": event}


def test_a_large_push_is_the_same_event_as_the_small_one(gate: Gate) -> None:
    headers = {"X-GitHub-Delivery": "d", "X-GitHub-Event": "push", "X-GitHub-Hook-ID": "1"}
    raw = json.dumps(push(2000)).encode()
    assert len(raw) > 8 * 1024 * 1024
    large = github.delivery(headers, raw)
    assert len(body(large)) < 200 * 1024
    assert json.loads(body(large))["repository"] == push(0)["repository"]
    first = gate.mark(large)
    again = gate.mark(github.delivery(headers, push(1)))
    assert (first.first, again.first, again.event_id) == (True, False, first.event_id)


def test_a_large_message_is_the_same_event_as_the_small_one(gate: Gate) -> None:
    large = slack.delivery(json.dumps(message(50)).encode())
    assert len(body(large)) < 200 * 1024
    assert large.redelivers
    assert gate.mark(large).first
    assert not gate.mark(slack.delivery(message(0))).first


def test_a_body_of_wide_characters_stays_as_small_as_it_came(gate: Gate) -> None:
    texts = {str(number): "日本語" * 300 for number in range(80)}
    issue = {"action": "opened", "fields": texts, "repository": push(0)["repository"]}
    raw = json.dumps(issue, ensure_ascii=False).encode()
    assert 200 * 1024 < len(raw) < 256 * 1024
    headers = {"X-GitHub-Delivery": "wide", "X-GitHub-Event": "issues", "X-GitHub-Hook-ID": "1"}
    for delivery in (github.delivery(headers, raw), github.delivery(headers, issue)):
        assert len(body(delivery)) <= len(raw)
        assert json.loads(body(delivery)) == issue
    assert gate.mark(github.delivery(headers, raw)).first


def test_half_a_character_is_escaped(gate: Gate) -> None:
    payload = {**message(0), "text": "\ud83d"}
    assert body(slack.delivery(payload)).endswith(b'"text":"\\ud83d"}')
    assert gate.mark(slack.delivery({**payload, "event_id": "half"})).first


def test_a_body_that_the_server_takes_is_sent_as_it_came() -> None:
    raw = json.dumps(push(20), indent=1).encode()
    assert body(github.delivery({}, raw)) == raw
    form = b"payload=" + b"x" * 300_000
    assert body(slack.delivery(form)) == form
