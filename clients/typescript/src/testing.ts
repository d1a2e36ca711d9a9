import { create } from "@bufbuild/protobuf";
import { Access } from "./access.js";
import { type SessionInit, toSession } from "./delivery.js";
import { Gate } from "./gate.js";
import {
  AdminService,
  ForceReleaseSessionLeaseRequestSchema,
  ListEventsRequestSchema,
} from "./gen/oncegate/v1/admin_service_pb.js";
import { EventState } from "./gen/oncegate/v1/event_pb.js";
import { GrpcTransport } from "./grpc.js";
import type { GateOptions } from "./options.js";
import { ServerProcess } from "./server-process.js";
import type { Transport } from "./transport.js";

export interface StartOptions {
  /** Options of the gate. */
  readonly gate?: Omit<GateOptions, "server"> | undefined;
  /** Further arguments of `oncegate serve`. */
  readonly args?: readonly string[] | undefined;
}

/** A gate and its server. `await using` closes both. */
export interface Started extends AsyncDisposable {
  readonly gate: Gate;
  readonly server: Server;
}

/**
 * Starts the real server, with a database of its own that is removed afterwards. The binary is
 * `ONCEGATE_BINARY`, that of the package `@oncegate/server`, or `oncegate` on the PATH.
 */
export async function startServer({ gate: options = {}, args = [] }: StartOptions = {}): Promise<Started> {
  const child = await ServerProcess.start(await findBinary(), args);
  const server = new Server(child, options.shareSessions ? "" : (options.consumer ?? ""));
  try {
    const own = { ...options, server: server.address };
    const gate = new Gate(own, transportTo(own));
    const dispose = async () => {
      try {
        await gate.close();
      } finally {
        await server.stop();
      }
    };
    return { gate, server, [Symbol.asyncDispose]: dispose };
  } catch (error) {
    await server.stop();
    throw error;
  }
}

/** The environment is that of another server. */
function transportTo(options: GateOptions): Transport {
  const warn = (problem: string) => process.emitWarning(problem, "OncegateWarning");
  return new GrpcTransport(new Access(options, warn, {}));
}

/** A turn that is open. */
export interface OpenTurn {
  readonly team: string;
  readonly event: string;
  readonly holder: string;
  readonly attempt: number;
}

const deadlineMs = 10_000;

/** The server of a test, and what can happen to it. */
export class Server {
  readonly #process: ServerProcess;
  readonly #transport: Transport;
  readonly #consumer: string;

  /** @internal */
  constructor(process: ServerProcess, consumer: string) {
    this.#process = process;
    this.#transport = transportTo({ server: process.address });
    this.#consumer = consumer;
  }

  /** For `new Gate({ server })`. The same after a restart. */
  get address(): string {
    return this.#process.address;
  }

  /** Kills the server. Resolves when it is gone. */
  async kill(): Promise<void> {
    await this.#process.kill();
  }

  /** Starts the server again after `kill` or `drain`. Resolves when it serves. */
  async restart(): Promise<void> {
    await this.#process.restart();
  }

  /** Lets the server finish its calls and end. */
  drain(): void {
    this.#process.signal("SIGTERM");
  }

  /** Stops the server's process: connections stay open, and nothing answers. */
  mute(): void {
    this.#process.signal("SIGSTOP");
  }

  unmute(): void {
    this.#process.signal("SIGCONT");
  }

  /** Takes the session away from its holder. */
  async lose(session: SessionInit): Promise<void> {
    const request = create(ForceReleaseSessionLeaseRequestSchema, {
      session: toSession(session).toKey(this.#consumer),
      actor: "oncegate/testing",
      reason: "a test takes the session away",
    });
    await this.#transport.unary(AdminService.method.forceReleaseSessionLease, request, { deadlineMs });
  }

  /** The turns that are open. */
  async turns(team = ""): Promise<OpenTurn[]> {
    const turns: OpenTurn[] = [];
    let pageToken = "";
    do {
      const request = create(ListEventsRequestSchema, {
        teamId: team,
        state: EventState.IN_PROGRESS,
        pageToken,
      });
      const page = await this.#transport.unary(AdminService.method.listEvents, request, { deadlineMs });
      for (const { teamId, eventId, holder, attempt } of page.events) {
        turns.push({ team: teamId, event: eventId, holder, attempt });
      }
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    return turns;
  }

  /** Ends the server and removes its database. */
  async stop(): Promise<void> {
    this.#transport.close();
    await this.#process.stop();
  }
}

async function findBinary(): Promise<string> {
  const { ONCEGATE_BINARY: given } = process.env;
  if (given) return given;
  // Not a literal: the package is optional, also for those who check types.
  const name: string = "@oncegate/server";
  let server: { binaryPath(): string };
  try {
    server = await import(name);
  } catch {
    return "oncegate";
  }
  return server.binaryPath();
}
