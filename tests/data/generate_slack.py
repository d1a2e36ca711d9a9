#!/usr/bin/env python3
"""Writes the Slack test deliveries beside this script, the same bytes every time.

slack_deliveries.jsonl    one delivery per line, in order of arrival
slack_deliveries.keys     TEAM<TAB>STORED_EVENT_ID for the same line, <TAB>ALIAS for each alias
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
from urllib.parse import urlencode

HERE = Path(__file__).resolve().parent
rng = random.Random(20251122)
clock = 1763800000.0  # seconds; moves on with every moment of the plan
deliveries = []  # (arrival time, team id, names, line)
blocks = {}  # the block of an element that is clicked more than once


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
    block_id = blocks.setdefault((channel["id"], ts, action_id), ident("", 5))
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
               "trigger_id": trigger(),
               "team": {"id": team["id"], "domain": team["domain"]}, "enterprise": None,
               "is_enterprise_install": False, "channel": {"id": channel["id"], "name": channel["name"]}}
    if not ephemeral:  # Slack does not send an ephemeral message back
        payload["message"] = shown
    response_url = f"https://hooks.slack.com/actions/{team['id']}/{rng.randrange(10**12, 10**13)}/FAKE{ident('', 20)}"
    action_ts = stamp(at)
    action = {"action_id": action_id, "block_id": block_id} | picked | {"type": kind, "action_ts": action_ts}
    once = "run-4242:" if kind == "button" else f":{action_ts}"
    name = f"action:{channel['id']}:{ts}::{user['id']}:{block_id}:{action_id}:{once}"
    return name, payload | {"state": {"values": values}, "response_url": response_url, "actions": [action]}


def trigger():
    return f"{rng.randrange(10**12, 10**13)}.{rng.randrange(10**11, 10**12)}.{rng.getrandbits(128):032x}"


def interaction(team, user, kind, **fields):
    return {"type": kind, "team": {"id": team["id"], "domain": team["domain"]},
            "user": {"id": user["id"], "username": user["name"], "team_id": team["id"]}, "api_app_id": APP,
            "token": TOKEN, "enterprise": None, "is_enterprise_install": False} | fields


def view(team):
    view_id = ident("V0", 8)
    return {"id": view_id, "team_id": team["id"], "type": "modal", "callback_id": "deploy_form", "private_metadata": "",
            "blocks": [{"type": "input", "block_id": ident("", 5), "label": {"type": "plain_text", "text": "Why?"},
                        "element": {"type": "plain_text_input", "action_id": "why"}}],
            "state": {"values": {}}, "hash": f"{int(clock)}.{ident('', 8)}", "root_view_id": view_id,
            "app_installed_team_id": team["id"]}


# --- putting deliveries on the wire ------------------------------------------

def put(at, team, names, payload, line=None):
    deliveries.append((at, team["id"], names, line or encode(payload)))


def frame(kind, payload):
    """The same payload as Socket Mode sends it."""
    return encode({"envelope_id": message_id(), "type": kind, "accepts_response_payload": False, "payload": payload})


def form(payload):
    """The same interaction as HTTP sends it."""
    return urlencode({"payload": encode(payload)})


def put_each_way(at, team, names, kind, payload):
    """An interaction as it arrives over HTTP, from a library, and over Socket Mode."""
    put(at, team, names, payload, form(payload))
    put(at + 1, team, names, payload)
    put(at + 2, team, names, payload, frame(kind, payload))


def sent(channel, ts, client_msg_id=None):
    """What all deliveries of one message are known by."""
    return ([f"msg:{client_msg_id}"] if client_msg_id else []) + [f"ts:{channel['id']}:{ts}"]


def send(event, team, channel, at, late=0.0, shared=False, aliases=()):
    """An envelope, its retries (the same body again) and, at times, one that was re-encoded on its way."""
    event_id = ident("Ev", 9)
    names = [event_id, *aliases]
    payload = envelope(team, event, channel, event_id, at, shared)
    arrival = at + late + rng.uniform(0, 20)
    put(arrival, team, names, payload)
    for delay in [30, 70, 310][:rng.choices([0, 1, 2, 3], [82, 11, 4, 3])[0]]:
        put(arrival + delay, team, names, payload)
    if rng.random() < 0.04:  # other key order, spaces, plain UTF-8: still the same event
        put(arrival + 45, team, names, payload, json.dumps(payload, sort_keys=True, ensure_ascii=False))
    if rng.random() < 0.04:
        put(arrival + 50, team, names, payload, frame("events_api", payload))


def send_bare(team, names, event, at):
    for delay in [0, 40, 90][:rng.choices([1, 2, 3], [70, 22, 8])[0]]:
        put(at + delay, team, names, event)


def somewhere():
    team = rng.choices(TEAMS, [5, 3, 2])[0]
    return team, rng.choice(team["channels"]), rng.choice(team["users"])


# --- what happens: one function for each kind of moment ------------------------

def say(team, channel, user, at, thread_ts=None, late=0.0, mention=None, **delivery):
    ts, client_msg_id = stamp(at), message_id()
    event = message(team, channel, user, ts, client_msg_id, thread_ts, mention)
    send(event, team, channel, at, late, aliases=sent(channel, ts, client_msg_id), **delivery)
    return event, ts, client_msg_id


def channel_message():
    team, channel, user = somewhere()
    say(team, channel, user, clock)


def direct_message():
    team, _, user = somewhere()
    say(team, team["dm"], user, clock)


def thread(parent_late=0.0):
    team, channel, _ = somewhere()
    _, parent_ts, _ = say(team, channel, team["users"][0], clock, late=parent_late)
    for n in range(rng.randint(1, 3)):
        say(team, channel, rng.choice(team["users"]), clock + 4 + 9 * n, parent_ts)


def reply_before_parent():
    thread(parent_late=60.0)


def mention():
    """One message, two envelopes: the event ids differ, what the message is known by does not."""
    team, channel, user = somewhere()
    thread_ts = stamp(clock - 600) if rng.random() < 0.3 else None
    event, ts, client_msg_id = say(team, channel, user, clock, thread_ts, mention=team["bot"]["id"])
    as_mention = event | {"type": "app_mention"}
    del as_mention["channel_type"]
    send(as_mention, team, channel, clock, aliases=sent(channel, ts, client_msg_id))


def reaction():
    team, channel, user = somewhere()
    item = {"type": "message", "channel": channel["id"], "ts": stamp(clock - 90)}
    event = {"type": "reaction_added", "user": user["id"], "reaction": rng.choice(REACTIONS), "item": item,
             "item_user": team["bot"]["id"], "event_ts": stamp(clock)}
    send(event, team, channel, clock)


def within(event):
    """The message as it stands within an edit or a deletion."""
    return {field: value for field, value in event.items() if field not in ("channel", "event_ts", "channel_type")}


def edit():
    team, channel, user = somewhere()
    sent_ts, ts = stamp(clock - 40), stamp(clock)
    before = within(message(team, channel, user, sent_ts, message_id()))
    after = before | {"text": before["text"] + " (fixed)", "edited": {"user": user["id"], "ts": ts}}
    event = {"type": "message", "subtype": "message_changed", "message": after, "previous_message": before,
             "channel": channel["id"], "hidden": True, "ts": ts, "event_ts": ts, "channel_type": "channel"}
    send(event, team, channel, clock, aliases=[f"edit:{channel['id']}:{sent_ts}:{ts}"])
    preview = after | {"attachments": [{"id": 1, "from_url": "https://ci.example.com/run/4242"}]}
    send(event | {"message": preview, "previous_message": after}, team, channel, clock)


def delete():
    team, channel, user = somewhere()
    sent_ts, ts = stamp(clock - 40), stamp(clock)
    before = within(message(team, channel, user, sent_ts, message_id()))
    event = {"type": "message", "subtype": "message_deleted", "previous_message": before, "channel": channel["id"],
             "hidden": True, "deleted_ts": sent_ts, "event_ts": ts, "ts": ts, "channel_type": "channel"}
    send(event, team, channel, clock, aliases=[f"del:{channel['id']}:{sent_ts}"])


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
        names = sent(SHARED, ts, client_msg_id)
        send(seen, team, SHARED, clock, shared=True, aliases=names)
        send_bare(team, names, seen, clock + 15)


def click(kind="button", ephemeral=False, clicks=1):
    team, channel, _ = somewhere()
    action_id = rng.choice(["approve_deploy", "reject_deploy", "rerun_job"] if kind == "button" else ["pick_env", "assign_to"])
    ts = stamp(clock - 120)
    thread_ts = stamp(clock - 900) if rng.random() < 0.3 else None
    for user in rng.sample(team["users"], rng.choice([1, 1, 2])):  # two people, two keys
        for n in range(clicks):  # one person again: another payload, the same key unless it is a menu
            name, payload = block_actions(team, channel, user, ts, clock + n, action_id, kind, thread_ts, ephemeral)
            put(clock + 20 * n, team, [name], payload)


def menu():
    click(rng.choice(["static_select", "overflow"]), clicks=rng.choice([1, 1, 2]))


def ephemeral_click():
    click(ephemeral=True)


def double_click():
    click(clicks=2)


def repeated_click():
    """The very same interaction body, delivered again."""
    click()
    _, team_id, names, line = deliveries[-1]
    deliveries.append((clock + 35, team_id, names, line))


def modal():
    """Submitted twice, since the first answer was refused, and then closed."""
    team, _, user = somewhere()
    shown = view(team)
    for n in range(2):
        trigger_id = trigger()
        payload = interaction(team, user, "view_submission", trigger_id=trigger_id, view=shown, response_urls=[])
        put_each_way(clock + 10 * n, team, [f"act:{trigger_id}"], "interactive", payload)
    payload = interaction(team, user, "view_closed", view=shown, is_cleared=False)
    put_each_way(clock + 30, team, [f"closed:{shown['id']}"], "interactive", payload)


def shortcut():
    team, channel, user = somewhere()
    trigger_id = trigger()
    payload = interaction(team, user, "shortcut", trigger_id=trigger_id, callback_id="new_deploy", action_ts=stamp(clock))
    put_each_way(clock, team, [f"act:{trigger_id}"], "interactive", payload)
    trigger_id, ts = trigger(), stamp(clock - 60)
    payload = interaction(team, user, "message_action", trigger_id=trigger_id, callback_id="open_ticket",
                          action_ts=stamp(clock), message_ts=ts, channel={"id": channel["id"], "name": channel["name"]},
                          message=within(message(team, channel, user, ts, message_id())))
    put_each_way(clock + 9, team, [f"act:{trigger_id}"], "interactive", payload)


def command():
    team, channel, user = somewhere()
    trigger_id = trigger()
    payload = {"token": TOKEN, "team_id": team["id"], "team_domain": team["domain"], "channel_id": channel["id"],
               "channel_name": channel["name"], "user_id": user["id"], "user_name": user["name"], "command": "/deploy",
               "text": "api to staging & back, 承認", "api_app_id": APP, "is_enterprise_install": "false",
               "trigger_id": trigger_id}
    put(clock, team, [f"act:{trigger_id}"], payload, urlencode(payload))
    put(clock + 1, team, [f"act:{trigger_id}"], payload, frame("slash_commands", payload))


def bare_message():
    team, channel, user = somewhere()
    thread_ts = stamp(clock - 300) if rng.random() < 0.3 else None
    ts, client_msg_id = stamp(clock), message_id()
    event = message(team, channel, user, ts, client_msg_id, thread_ts)
    send_bare(team, sent(channel, ts, client_msg_id), event, clock)


def bare_bot():
    team, channel, _ = somewhere()
    ts = stamp(clock)
    send_bare(team, sent(channel, ts), bot_message(team, channel, ts), clock)


def bare_file():
    team, channel, user = somewhere()
    ts = stamp(clock)
    send_bare(team, sent(channel, ts), file_message(team, channel, user, ts), clock)


def same_ts_in_two_channels():
    ts = stamp(clock)
    for channel in TEAMS[0]["channels"][:2]:
        send_bare(TEAMS[0], sent(channel, ts), bot_message(TEAMS[0], channel, ts), clock)


PLAN = {channel_message: 34, direct_message: 16, thread: 10, reply_before_parent: 4, mention: 13, reaction: 18,
        edit: 5, join: 4, shared_channel: 3, click: 14, menu: 9, ephemeral_click: 4, double_click: 4,
        repeated_click: 2, bare_message: 15, bare_bot: 11, bare_file: 8, same_ts_in_two_channels: 1,
        delete: 3, modal: 3, shortcut: 3, command: 4}


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
    _, in_view = block_actions(team, channel, user, ts, clock, "approve_deploy")  # clicked in a modal: no message
    del in_view["message"], in_view["channel"]
    view_id, block_id = ident("V0", 8), blocks[channel["id"], ts, "approve_deploy"]
    in_view["container"] = {"type": "view", "view_id": view_id}
    question = interaction(team, user, "block_suggestion", action_id="pick_env", block_id="b1", value="sta")
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
        (ok(f"action:::{view_id}:{user['id']}:{block_id}:approve_deploy:run-4242:"), encode(in_view)),
        ("bad", encode(question)),
        ("bad", form(question)),
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
    write("slack_deliveries.keys", ["\t".join([team, *names]) for _, team, names, _ in arrived])
    bad = bad_lines()
    write("slack_bad_lines.jsonl", [line for _, line in bad])
    write("slack_bad_lines.expected", [expected for expected, _ in bad])


if __name__ == "__main__":
    main()
