#!/usr/bin/env python3
"""Writes the Slack test deliveries beside this script, the same bytes every time.

slack_deliveries.jsonl    one delivery per line, in order of arrival
slack_deliveries.keys     TEAM<TAB>STORED_EVENT_ID for the same line
slack_bad_lines.jsonl     good deliveries among lines that must be refused
slack_bad_lines.expected  ok<TAB>TEAM<TAB>KEY, bad or skip for the same line

Every key is noted when its delivery is made, from the ids it was made with; no
payload is ever read back. Workspaces, people, ids and tokens are invented.
"""

import base64
import json
import random
import string
import uuid
from pathlib import Path

HERE = Path(__file__).resolve().parent
rng = random.Random(20251122)
clock = 1763800000.0  # seconds; moves on with every moment of the plan
deliveries = []  # (arrival time, team id, key, line)


# --- ids -------------------------------------------------------------------

def ident(prefix, length):
    return prefix + "".join(rng.choices(string.ascii_uppercase + string.digits, k=length))


def message_id():
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def stamp(at):
    """A Slack ts: whole seconds and six digits, unique within a channel."""
    return f"{int(at)}.{rng.randrange(10, 999999):06d}"


# --- the world -------------------------------------------------------------

APP = "A06ONCE7GT"
TOKEN = "one-long-verification-token"


def workspace(team_id, domain, people, channels):
    return {
        "id": team_id,
        "domain": domain,
        "users": [{"id": ident("U0", 8), "name": name} for name in people],
        "bot": {"id": ident("U0", 8), "bot_id": ident("B0", 8)},
        "channels": [{"id": ident("C0", 8), "name": name, "type": "channel"} for name in channels],
        "dm": {"id": ident("D0", 8), "name": "directmessage", "type": "im"},
    }


TEAMS = [
    workspace("T024BE7LD", "example-build", ["deploy-user", "release-user", "oncall-user", "triage-user"],
              ["deploys", "releases", "incidents", "random"]),
    workspace("T0KX3QW5N", "example-support", ["support-user", "review-user", "qa-user"],
              ["support", "reviews", "qa-runs"]),
    workspace("T061F7ZRA", "example-docs", ["docs-user", "ops-user", "build-user"],
              ["docs", "ops"]),
]
SHARED = {"id": ident("C0", 8), "name": "shared-launch", "type": "channel"}  # of the first two teams

TEXTS = [  # a message is a list of parts: text, (emoji name, code point) or a link
    ["deploy of api to staging is done"],
    ["retrying the failed job, same commit"],
    ["is anyone looking at the 502s on checkout?"],
    ["ok"],
    ["latency p99 < 250 ms & error rate > 0.1%, see ", "https://grafana.example.com/d/abc/api?from=now-1h"],
    ["build ", "https://ci.example.com/run/4242", " passed"],
    [("rocket", "1f680"), " shipping in 5"],
    ["done ", ("white_check_mark", "2705"), ("tada", "1f389")],
    ["デプロイが完了しました。ログを確認してください"],
    ["Zażółć gęślą jaźń, naïve café, e\u0301 and é"],
    ["تم نشر الإصدار الجديد"],
    ["Проверьте, пожалуйста, очередь"],
    ["raw emoji \U0001f9d1\u200d\U0001f4bb \U0001f1ee\U0001f1f8 \U0001f44d\U0001f3fd"],
    ["two lines:\n• first\n• \"second\" with a \\ backslash\tand a tab"],
    ["```\nerror: deadlock detected\n  at worker/queue.rs:118\n```"],
]
REACTIONS = ["eyes", "white_check_mark", "+1::skin-tone-3", "rocket", "thumbsup_all"]


# --- payloads --------------------------------------------------------------

def encode(payload):
    """As Slack encodes a body: compact, ASCII only, slashes escaped."""
    return json.dumps(payload, separators=(",", ":")).replace("/", "\\/")


def rich_text(parts, mention=None):
    """The plain text of a message and the block that says the same."""
    text, elements = "", []
    if mention:
        text = f"<@{mention}> "
        elements = [{"type": "user", "user_id": mention}, {"type": "text", "text": " "}]
    for part in parts:
        if isinstance(part, tuple):
            text += f":{part[0]}:"
            elements.append({"type": "emoji", "name": part[0], "unicode": part[1]})
        elif part.startswith("https://"):
            text += f"<{part}>"
            elements.append({"type": "link", "url": part})
        else:
            text += part.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            elements.append({"type": "text", "text": part})
    section = {"type": "rich_text_section", "elements": elements}
    return text, [{"type": "rich_text", "block_id": ident("", 5), "elements": [section]}]


def message(team, channel, user, ts, client_msg_id=None, thread_ts=None, mention=None):
    text, blocks = rich_text(rng.choice(TEXTS), mention)
    event = {"user": user["id"], "type": "message", "ts": ts}
    if client_msg_id:
        event["client_msg_id"] = client_msg_id
    event |= {"text": text, "team": team["id"]}
    if thread_ts:
        event |= {"thread_ts": thread_ts, "parent_user_id": team["users"][0]["id"]}
    return event | {"blocks": blocks, "channel": channel["id"], "event_ts": ts, "channel_type": channel["type"]}


def bot_message(team, channel, ts):
    event = message(team, channel, team["bot"], ts)
    profile = {"id": team["bot"]["bot_id"], "deleted": False, "name": "deploy-helper", "updated": 1763000000,
               "app_id": APP, "team_id": team["id"],
               "icons": {"image_36": "https://a.slack-edge.com/80588/img/plugins/app/bot_36.png"}}
    return event | {"bot_id": team["bot"]["bot_id"], "app_id": APP, "bot_profile": profile}


def file_message(team, channel, user, ts):
    file_id, name = ident("F0", 8), rng.choice(["trace.log", "график.png", "report.pdf"])
    url = f"https://files.slack.com/files-pri/{team['id']}-{file_id}"
    file = {"id": file_id, "created": int(float(ts)), "timestamp": int(float(ts)), "name": name, "title": name,
            "mimetype": "application/octet-stream", "filetype": name.rsplit(".", 1)[1], "user": user["id"],
            "user_team": team["id"], "editable": False, "size": rng.randrange(900, 900000), "mode": "hosted",
            "is_external": False, "external_type": "", "is_public": True, "display_as_bot": False,
            "url_private": f"{url}/{name}", "url_private_download": f"{url}/download/{name}",
            "permalink": f"https://{team['domain']}.slack.com/files/{user['id']}/{file_id}/{name}",
            "has_rich_preview": False, "file_access": "visible"}
    return message(team, channel, user, ts) | {"subtype": "file_share", "files": [file], "upload": False}


def envelope(team, event, channel, event_id, at, shared=False):
    context = {"et": event["type"], "tid": team["id"], "aid": APP, "cid": channel["id"]}
    context = base64.urlsafe_b64encode(json.dumps(context, separators=(",", ":")).encode()).decode().rstrip("=")
    return {"token": TOKEN, "team_id": team["id"], "context_team_id": team["id"], "context_enterprise_id": None,
            "api_app_id": APP, "event": event, "type": "event_callback", "event_id": event_id,
            "event_time": int(at),
            "authorizations": [{"enterprise_id": None, "team_id": team["id"], "user_id": team["bot"]["id"],
                                "is_bot": True, "is_enterprise_install": False}],
            "is_ext_shared_channel": shared, "event_context": f"4-{context}"}


def block_actions(team, channel, user, ts, at, action_id, kind="button", thread_ts=None, ephemeral=False):
    label = {"type": "plain_text", "text": action_id.replace("_", " ").title(), "emoji": True}
    option = {"text": {"type": "plain_text", "text": "Café \u2615", "emoji": True}, "value": f"option-{rng.randrange(9)}"}
    block_id = ident("", 5)
    if kind == "button":
        element = {"type": kind, "action_id": action_id, "text": label, "style": "primary", "value": "run-4242"}
        picked, values = {"text": label, "value": "run-4242", "style": "primary"}, {}
    else:
        element = {"type": kind, "action_id": action_id, "options": [option]}
        picked, values = {"selected_option": option}, {}
        if kind == "static_select":  # an overflow menu has neither of these
            element["placeholder"] = picked["placeholder"] = label
            values = {block_id: {action_id: {"type": kind, "selected_option": option}}}
    shown = {"user": team["bot"]["id"], "type": "message", "ts": ts, "bot_id": team["bot"]["bot_id"], "app_id": APP,
             "text": "Approve the deploy?", "team": team["id"],
             "blocks": [{"type": "section", "block_id": ident("", 5),
                         "text": {"type": "mrkdwn", "text": "*Approve* the deploy? :rocket:", "verbatim": False}},
                        {"type": "actions", "block_id": block_id, "elements": [element]}]}
    container = {"type": "message", "message_ts": ts, "channel_id": channel["id"], "is_ephemeral": ephemeral}
    if thread_ts:
        shown["thread_ts"] = container["thread_ts"] = thread_ts
    payload = {"type": "block_actions",
               "user": {"id": user["id"], "username": user["name"], "name": user["name"], "team_id": team["id"]},
               "api_app_id": APP, "token": TOKEN, "container": container,
               "trigger_id": f"{rng.randrange(10**12, 10**13)}.{rng.randrange(10**11, 10**12)}.{rng.getrandbits(128):032x}",
               "team": {"id": team["id"], "domain": team["domain"]}, "enterprise": None,
               "is_enterprise_install": False, "channel": {"id": channel["id"], "name": channel["name"]}}
    if not ephemeral:  # Slack does not send an ephemeral message back
        payload["message"] = shown
    response_url = f"https://hooks.slack.com/actions/{team['id']}/{rng.randrange(10**12, 10**13)}/FAKE{ident('', 20)}"
    action = {"action_id": action_id, "block_id": block_id} | picked | {"type": kind, "action_ts": stamp(at)}
    return payload | {"state": {"values": values}, "response_url": response_url, "actions": [action]}


# --- putting deliveries on the wire ------------------------------------------

def put(at, team, key, payload, line=None):
    deliveries.append((at, team["id"], key, line or encode(payload)))


def send(event, team, channel, at, late=0.0, shared=False):
    """An envelope, its retries (the same body again) and, at times, one that was re-encoded on its way."""
    event_id = ident("Ev", 9)
    payload = envelope(team, event, channel, event_id, at, shared)
    arrival = at + late + rng.uniform(0, 20)
    put(arrival, team, event_id, payload)
    for delay in [30, 70, 310][:rng.choices([0, 1, 2, 3], [82, 11, 4, 3])[0]]:
        put(arrival + delay, team, event_id, payload)
    if rng.random() < 0.04:  # other key order, spaces, plain UTF-8: still the same event
        put(arrival + 45, team, event_id, payload, json.dumps(payload, sort_keys=True, ensure_ascii=False))


def send_bare(team, key, event, at):
    for delay in [0, 40, 90][:rng.choices([1, 2, 3], [70, 22, 8])[0]]:
        put(at + delay, team, key, event)


def somewhere():
    team = rng.choices(TEAMS, [5, 3, 2])[0]
    return team, rng.choice(team["channels"]), rng.choice(team["users"])


# --- what happens: one function for each kind of moment ------------------------

def channel_message():
    team, channel, user = somewhere()
    send(message(team, channel, user, stamp(clock), message_id()), team, channel, clock)


def direct_message():
    team, _, user = somewhere()
    send(message(team, team["dm"], user, stamp(clock), message_id()), team, team["dm"], clock)


def thread(parent_late=0.0):
    team, channel, _ = somewhere()
    parent_ts = stamp(clock)
    send(message(team, channel, team["users"][0], parent_ts, message_id()), team, channel, clock, parent_late)
    for n in range(rng.randint(1, 3)):
        at = clock + 4 + 9 * n
        reply = message(team, channel, rng.choice(team["users"]), stamp(at), message_id(), parent_ts)
        send(reply, team, channel, at)


def reply_before_parent():
    thread(parent_late=60.0)


def mention():
    """One message, two envelopes: the event ids differ, the client_msg_id is shared, so the keys differ."""
    team, channel, user = somewhere()
    thread_ts = stamp(clock - 600) if rng.random() < 0.3 else None
    event = message(team, channel, user, stamp(clock), message_id(), thread_ts, mention=team["bot"]["id"])
    as_mention = event | {"type": "app_mention"}
    del as_mention["channel_type"]
    send(event, team, channel, clock)
    send(as_mention, team, channel, clock)


def reaction():
    team, channel, user = somewhere()
    item = {"type": "message", "channel": channel["id"], "ts": stamp(clock - 90)}
    event = {"type": "reaction_added", "user": user["id"], "reaction": rng.choice(REACTIONS), "item": item,
             "item_user": team["bot"]["id"], "event_ts": stamp(clock)}
    send(event, team, channel, clock)


def edit():
    team, channel, user = somewhere()
    before = message(team, channel, user, stamp(clock - 40), message_id())
    for field in ("channel", "event_ts", "channel_type"):
        del before[field]
    ts = stamp(clock)
    after = before | {"text": before["text"] + " (fixed)", "edited": {"user": user["id"], "ts": ts}}
    send({"type": "message", "subtype": "message_changed", "message": after, "previous_message": before,
          "channel": channel["id"], "hidden": True, "ts": ts, "event_ts": ts, "channel_type": "channel"},
         team, channel, clock)


def join():
    team, channel, user = somewhere()
    send({"type": "member_joined_channel", "user": user["id"], "channel": channel["id"], "channel_type": "C",
          "team": team["id"], "inviter": team["users"][0]["id"], "event_ts": stamp(clock)}, team, channel, clock)


def shared_channel():
    """One message of a channel that two workspaces share, seen by both: nothing crosses teams."""
    home, ts, client_msg_id = TEAMS[0], stamp(clock), message_id()
    event = message(home, SHARED, home["users"][1], ts, client_msg_id)
    for team in TEAMS[:2]:
        seen = event | {"team": team["id"], "user_team": home["id"], "source_team": home["id"]}
        send(seen, team, SHARED, clock, shared=True)
        send_bare(team, f"msg:{client_msg_id}", seen, clock + 15)


def click(kind="button", ephemeral=False, clicks=1):
    team, channel, _ = somewhere()
    action_id = rng.choice(["approve_deploy", "reject_deploy", "rerun_job"] if kind == "button" else ["pick_env", "assign_to"])
    ts = stamp(clock - 120)
    thread_ts = stamp(clock - 900) if rng.random() < 0.3 else None
    for user in rng.sample(team["users"], rng.choice([1, 1, 2])):  # two people, two keys
        for n in range(clicks):  # one person again: another payload, the same key
            payload = block_actions(team, channel, user, ts, clock + n, action_id, kind, thread_ts, ephemeral)
            put(clock + 20 * n, team, f"{action_id}:{ts}:{user['id']}", payload)


def menu():
    click(rng.choice(["static_select", "overflow"]))


def ephemeral_click():
    click(ephemeral=True)


def double_click():
    click(clicks=2)


def repeated_click():
    """The very same interaction body, delivered again."""
    click()
    _, team_id, key, line = deliveries[-1]
    deliveries.append((clock + 35, team_id, key, line))


def bare_message():
    team, channel, user = somewhere()
    thread_ts = stamp(clock - 300) if rng.random() < 0.3 else None
    client_msg_id = message_id()
    send_bare(team, f"msg:{client_msg_id}", message(team, channel, user, stamp(clock), client_msg_id, thread_ts), clock)


def bare_bot():
    team, channel, _ = somewhere()
    ts = stamp(clock)
    send_bare(team, f"ts:{channel['id']}:{ts}", bot_message(team, channel, ts), clock)


def bare_file():
    team, channel, user = somewhere()
    ts = stamp(clock)
    send_bare(team, f"ts:{channel['id']}:{ts}", file_message(team, channel, user, ts), clock)


def same_ts_in_two_channels():
    ts = stamp(clock)
    for channel in TEAMS[0]["channels"][:2]:
        send_bare(TEAMS[0], f"ts:{channel['id']}:{ts}", bot_message(TEAMS[0], channel, ts), clock)


PLAN = {channel_message: 34, direct_message: 16, thread: 10, reply_before_parent: 4, mention: 13, reaction: 18,
        edit: 5, join: 4, shared_channel: 3, click: 14, menu: 9, ephemeral_click: 4, double_click: 4,
        repeated_click: 2, bare_message: 15, bare_bot: 11, bare_file: 8, same_ts_in_two_channels: 1}


# --- lines that must be refused ------------------------------------------------

def bad_lines():
    """(expected, line) for each line, in order."""
    team, channel, user = TEAMS[0], TEAMS[0]["channels"][0], TEAMS[0]["users"][0]

    def event(event_id):
        return encode(envelope(team, message(team, channel, user, stamp(clock), message_id()), channel, event_id, clock))

    def ok(key):
        return f"ok\t{team['id']}\t{key}"

    first, last, longest, ts = ident("Ev", 9), ident("Ev", 9), "Ev" + "x" * 510, stamp(clock)
    no_team = bot_message(team, channel, stamp(clock))
    del no_team["team"]
    in_view = block_actions(team, channel, user, ts, clock, "approve_deploy")  # clicked in a modal: no message
    del in_view["message"], in_view["channel"]
    in_view["container"] = {"type": "view", "view_id": ident("V0", 8)}
    return [
        (ok(first), event(first)),
        ("bad", "not json at all"),
        ("bad", event(ident("Ev", 9))[:300]),
        ("bad", f"[{event(ident('Ev', 9))}]"),
        ("bad", '"Ev0STRING01"'),
        ("bad", "1763800000.123456"),
        ("bad", "null"),
        ("bad", "{}"),
        ("skip", ""),
        (ok(f"ts:{channel['id']}:{ts}"), encode(bot_message(team, channel, ts))),
        ("bad", encode({"token": TOKEN, "type": "app_rate_limited", "team_id": team["id"],
                        "minute_rate_limited": int(clock), "api_app_id": APP})),
        ("bad", encode(in_view)),
        ("bad", encode(no_team)),
        ("bad", event("Ev0BELL\u000701")),
        (ok(longest), event(longest)),  # 512 bytes: the longest that is allowed
        ("bad", event("Ev" + "é" * 256)),  # 258 characters, but 514 bytes
        ("bad", encode({"token": TOKEN, "challenge": "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P",
                        "type": "url_verification"})),
        (ok(last), event(last)),
    ]


def write(name, lines):
    (HERE / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def main():
    global clock
    plan = [moment for moment, times in PLAN.items() for _ in range(times)]
    rng.shuffle(plan)
    for moment in plan:
        clock += rng.uniform(3, 12)
        moment()
    arrived = sorted(deliveries, key=lambda delivery: delivery[0])
    write("slack_deliveries.jsonl", [line for _, _, _, line in arrived])
    write("slack_deliveries.keys", [f"{team}\t{key}" for _, team, key, _ in arrived])
    bad = bad_lines()
    write("slack_bad_lines.jsonl", [line for _, line in bad])
    write("slack_bad_lines.expected", [expected for expected, _ in bad])


if __name__ == "__main__":
    main()
