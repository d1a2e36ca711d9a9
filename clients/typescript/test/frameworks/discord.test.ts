import { Client, Events, GatewayIntentBits, Partials, Status } from "discord.js";
import { expect, test, vi } from "vitest";
import * as discord from "../../src/discord.js";
import { handler } from "../../src/discord.js";
import { Busy, type Gate, InProgress, Session, type Turn } from "../../src/index.js";
import { startServer } from "../../src/testing.js";
import { eventually } from "./eventually.js";
import { payload } from "./payloads.js";

const created = payload("discord", "MESSAGE_CREATE").body;
const edited = payload("discord", "MESSAGE_UPDATE by an edit").body;
const deleted = payload("discord", "MESSAGE_DELETE").body;
const reaction = payload("discord", "MESSAGE_REACTION_ADD has no id").body;
const { d: command, ...dispatched } = payload("discord", "interaction from the gateway").body;
// What discord.js asks for beside.
const interaction = {
  ...dispatched,
  d: { ...command, data: { ...command.data, type: 1 }, entitlements: [], authorizing_integration_owners: {} },
};
const { d: privately, ...createdDirectly } = payload("discord", "MESSAGE_CREATE in a direct message").body;
const direct = { ...createdDirectly, d: { ...privately, id: "501", channel_id: "30", channel_type: 1 } };
const channel = new Session("1", "1:20");

/** A client of discord.js, and what its gateway would dispatch. */
function makeClient() {
  const client = new Client({
    intents: [GatewayIntentBits.Guilds, GatewayIntentBits.GuildMessages],
    partials: [Partials.Message, Partials.Channel, Partials.Reaction, Partials.User],
  });
  const errors = vi.fn<(error: Error) => void>();
  client.on(Events.Error, errors);
  const ws = client.ws as unknown as { status: Status; handlePacket(packet: object, shard: object): void };
  ws.status = Status.Ready;
  Object.assign(client, { user: { id: "77" } });
  const dispatch = (packet: object) => ws.handlePacket(packet, { id: 0 });
  const channels = [{ id: "20", type: 0, guild_id: "1", name: "general", parent_id: "2" }];
  dispatch({
    t: "GUILD_CREATE",
    d: { id: "1", name: "guild", channels, members: [], roles: [], threads: [] },
  });
  return { client, dispatch, errors };
}

function outcome(gate: Gate, body: object) {
  return gate.seen(discord.delivery(body)).then((seen) => seen.outcome);
}

test("of two processes one handles a message, in the turn of its channel", async () => {
  await using started = await startServer();
  const seen: unknown[] = [];
  const processes = [makeClient(), makeClient()];
  for (const { client } of processes) {
    client.on(
      Events.MessageCreate,
      handler(started.gate, async (message, turn) => {
        seen.push(message.content, turn.held, typeof turn.fence);
      }),
    );
  }
  for (const event of [created, direct]) {
    for (const { dispatch } of processes) dispatch(event);
    await eventually(async () => expect(await outcome(started.gate, event)).toBe("SUCCEEDED"));
  }
  await eventually(async () => expect(await started.server.turns()).toEqual([]));
  expect(seen).toEqual(["hi", true, "bigint", "hi", true, "bigint"]);
  for (const { errors } of processes) expect(errors).not.toHaveBeenCalled();
});

test("an interaction, an edit and a deletion are events of their own", async () => {
  await using started = await startServer();
  const { gate } = started;
  const { client, dispatch, errors } = makeClient();
  const handled: string[] = [];
  const note =
    (name: string) =>
    async (...args: unknown[]) => {
      if ((args.at(-1) as Turn).held) handled.push(name);
    };
  client.on(Events.MessageCreate, handler(gate, note("created")));
  client.on(Events.MessageUpdate, handler(gate, note("edited")));
  client.on(Events.MessageDelete, handler(gate, note("deleted"), { event: Events.MessageDelete }));
  client.on(Events.InteractionCreate, handler(gate, note("interaction")));
  const events = [created, edited, deleted, interaction];
  for (const [index, event] of events.entries()) {
    dispatch(event);
    await eventually(() => expect(handled).toHaveLength(index + 1));
  }
  expect(handled).toEqual(["created", "edited", "deleted", "interaction"]);
  for (const event of [created, deleted, interaction]) {
    await eventually(async () => expect(await outcome(gate, event)).toBe("SUCCEEDED"));
  }
  expect(errors).not.toHaveBeenCalled();
});

test("an event without an id is handled without a turn", async () => {
  await using started = await startServer();
  const { client, dispatch } = makeClient();
  const handle = vi.fn(async (..._args: unknown[]) => {});
  client.on(Events.MessageReactionAdd, handler(started.gate, handle));
  dispatch(reaction);
  dispatch(reaction);
  await eventually(() => expect(handle).toHaveBeenCalledTimes(2));
  expect(handle.mock.calls[0]?.at(-1)).toMatchObject({ held: false });
});

test("an interaction of a busy channel waits, after it was deferred", async () => {
  await using started = await startServer();
  const { client, dispatch } = makeClient();
  const order: string[] = [];
  client.on(
    Events.InteractionCreate,
    handler(started.gate, async () => void order.push("handled"), {
      onBusy: async ({ id }, busy) => void order.push(`deferred ${id} for ${busy.kind}`),
    }),
  );
  const lease = await started.gate.lease(channel);
  dispatch(interaction);
  await eventually(() => expect(lease.waiters).toBe(1));
  expect(order).toEqual(["deferred 1000 for busy"]);
  await lease.release();
  await eventually(() => expect(order).toEqual(["deferred 1000 for busy", "handled"]));
});

test("an `onBusy` that fails does not stop the handler", async () => {
  await using started = await startServer();
  const { client, dispatch, errors } = makeClient();
  const handle = vi.fn(async () => {});
  const onBusy = vi.fn(() => Promise.reject(new Error("Unknown interaction")));
  client.on(Events.InteractionCreate, handler(started.gate, handle, { onBusy }));
  const lease = await started.gate.lease(channel);
  dispatch(interaction);
  await eventually(() => expect(lease.waiters).toBe(1));
  expect(onBusy).toHaveBeenCalledOnce();
  await lease.release();
  await eventually(() => expect(handle).toHaveBeenCalledOnce());
  expect(errors).not.toHaveBeenCalled();
});

test("a handler that throws fails the turn, and its error is the client's", async () => {
  await using started = await startServer();
  const attempts: number[] = [];
  const processes = [makeClient(), makeClient()] as const;
  for (const { client } of processes) {
    client.on(
      Events.MessageCreate,
      handler(started.gate, async (_message, turn) => {
        attempts.push(turn.attempt);
        if (turn.attempt === 1) throw new Error("no answer");
      }),
    );
  }
  const [first, second] = processes;
  first.dispatch(created);
  await eventually(() => expect(first.errors).toHaveBeenCalledOnce());
  expect(first.errors.mock.calls[0]?.[0].message).toBe("no answer");
  second.dispatch(created);
  await eventually(() => expect(attempts).toEqual([1, 2]));
});

test("a message that another process handles is handled here if that process fails", async () => {
  await using started = await startServer();
  const { client, dispatch } = makeClient();
  const handle = vi.fn(async () => {});
  client.on(Events.MessageCreate, handler(started.gate, handle));
  const turn = await started.gate.begin(discord.delivery(created), { ttl: "2s" });
  dispatch(created);
  await turn.fail();
  await eventually(() => expect(handle).toHaveBeenCalledOnce());
});

test("a message waits for a server that is away, however impatient the gate is", async () => {
  await using started = await startServer({ gate: { patience: 1 } });
  const { client, dispatch, errors } = makeClient();
  const handle = vi.fn(async () => {});
  client.on(Events.MessageCreate, handler(started.gate, handle, { patience: undefined }));
  await started.server.kill();
  dispatch(created);
  await started.server.restart();
  await eventually(() => expect(handle).toHaveBeenCalledOnce());
  expect(errors).not.toHaveBeenCalled();
});

test("an error of the handler is its own, also if a turn or lease of its own was not granted", async () => {
  await using started = await startServer();
  for (const [id, error] of [
    ["600", new Busy("another process", 0, 10)],
    ["601", new InProgress("another process", 1, 10)],
  ] as const) {
    const { client, dispatch, errors } = makeClient();
    const handle = vi.fn((_message: unknown, _turn: Turn) => Promise.reject(error));
    const onBusy = vi.fn();
    client.on(Events.MessageCreate, handler(started.gate, handle, { onBusy }));
    dispatch({ ...created, d: { ...created.d, id } });
    await eventually(() => expect(errors).toHaveBeenCalledWith(error));
    expect(handle).toHaveBeenCalledOnce();
    expect(onBusy).not.toHaveBeenCalled();
  }
});
