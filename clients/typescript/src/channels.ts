import * as grpc from "@grpc/grpc-js";
import type { Access, Certificates } from "./access.js";
import { IdempotencyService } from "./gen/oncegate/v1/idempotency_service_pb.js";
import { TurnService } from "./gen/oncegate/v1/turn_service_pb.js";

/** Below the server's limit of 1,024 calls a connection. */
const streamsPerChannel = 900;

/** Each unary call is repeatable, by its request id, turn id or lease id. */
const unaryRetries = {
  maxAttempts: 5,
  initialBackoff: "0.1s",
  maxBackoff: "2s",
  backoffMultiplier: 2,
  retryableStatusCodes: ["UNAVAILABLE"],
};

const unaryNames = [IdempotencyService, TurnService].flatMap((service) =>
  service.methods
    .filter((method) => method.methodKind === "unary")
    .map((method) => ({ service: service.typeName, method: method.name })),
);

/** One channel, with the number of its calls and streams. */
interface Channel {
  readonly client: grpc.Client;
  live: number;
}

/** A channel for one call or stream. */
export interface Lent {
  readonly client: grpc.Client;
  /** The call or stream has ended. */
  done(): void;
}

/** The channels of one gate, made on first use: one for calls, and others for streams. */
export class Channels {
  readonly #access: Access;
  readonly #open = new Set<Channel>();
  /** Those of the channels that calls and streams get. */
  #certificates: Certificates | undefined;
  #calls: Channel | undefined;
  #streams: Channel[] = [];

  constructor(access: Access) {
    this.#access = access;
  }

  forCall(certificates: Certificates | undefined): Lent {
    this.#use(certificates);
    this.#calls ??= this.#make();
    return this.#lend(this.#calls);
  }

  forStream(certificates: Certificates | undefined): Lent {
    this.#use(certificates);
    let channel = this.#streams.find(({ live }) => live < streamsPerChannel);
    if (!channel) {
      channel = this.#make();
      this.#streams.push(channel);
    }
    return this.#lend(channel);
  }

  close(): void {
    for (const { client } of this.#open) client.close();
  }

  #lend(channel: Channel): Lent {
    channel.live += 1;
    const done = () => {
      channel.live -= 1;
      this.#closeIfUnused(channel);
    };
    return { client: channel.client, done };
  }

  /** If the certificates have changed, what comes gets other channels: those of gRPC keep what they began with. */
  #use(certificates: Certificates | undefined): void {
    if (certificates === this.#certificates) return;
    this.#certificates = certificates;
    this.#calls = undefined;
    this.#streams = [];
    for (const channel of this.#open) this.#closeIfUnused(channel);
  }

  #closeIfUnused(channel: Channel): void {
    if (channel.live > 0 || channel === this.#calls || this.#streams.includes(channel)) return;
    this.#open.delete(channel);
    channel.client.close();
  }

  #make(): Channel {
    const client = new grpc.Client(this.#access.target, this.#credentials(), this.#options());
    const channel = { client, live: 0 };
    this.#open.add(channel);
    return channel;
  }

  #credentials(): grpc.ChannelCredentials {
    if (!this.#access.isTls) return grpc.credentials.createInsecure();
    const { ca, cert, key } = this.#certificates ?? {};
    return grpc.credentials.createSsl(ca ?? null, key ?? null, cert ?? null);
  }

  #options(): grpc.ChannelOptions {
    const { target, serverName, avoidsProxy } = this.#access;
    return {
      "grpc.keepalive_time_ms": 20_000,
      "grpc.keepalive_timeout_ms": 10_000,
      "grpc.initial_reconnect_backoff_ms": 100,
      "grpc.max_reconnect_backoff_ms": 2000,
      // grpc-js shares connections of equal channels in a process: streams and calls would not be apart.
      "grpc.use_local_subchannel_pool": 1,
      "grpc.service_config": JSON.stringify({
        loadBalancingConfig: [target.startsWith("dns:") ? { round_robin: {} } : { pick_first: {} }],
        methodConfig: [{ name: unaryNames, retryPolicy: unaryRetries }],
      }),
      ...(avoidsProxy && { "grpc.enable_http_proxy": 0 }),
      ...(serverName !== undefined && { "grpc.ssl_target_name_override": serverName }),
    };
  }
}
