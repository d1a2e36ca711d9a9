import { CallError, Code } from "./call-error.js";
import type { Cancellation } from "./cancellation.js";
import type { Hold } from "./hold.js";
import type { Settings } from "./options.js";
import { Patience } from "./patience.js";
import { repeat } from "./retry.js";
import { type Clock, earlyMs, sleep, timeout } from "./time.js";
import type { Receiver, Stream } from "./transport.js";

/** What the first messages of a stream say; undefined: nothing that matters before the grant. */
export type Answer<G> =
  | { readonly queued: number }
  | { readonly granted: G }
  /** An error instead: NotGranted. */
  | { readonly instead: unknown }
  | undefined;

/** A request for a turn or a lease, over a stream. */
export interface Request<I, O, G, H extends Hold> {
  start(waitMs: number, receiver: Receiver<O>): Stream<I, O>;
  read(message: O): Answer<G>;
  /** Takes the grant and the stream over, before the next message is read. */
  accept(grant: G, stream: Stream<I, O>, sent: number): H;
  /** Leaves the queue, and gives back what may have been granted meanwhile. */
  abandon(stream: Stream<I, O>): void;
  queued(position: number): void;
}

/** The least effort for the call that renews a turn or lease before its holder gets it. */
const leastCarryMs = 1000;

/**
 * Requests a turn or lease until there is one that is trusted. A request is repeated while the server
 * is unavailable or overloaded. Throws NotGranted, a CallError, or the scope's reason.
 */
export async function open<I, O, G, H extends Hold>(
  makeRequest: () => Request<I, O, G, H>,
  { patienceMs, waitMs, ttlMs }: Settings,
  clock: Clock,
  scope: Cancellation,
): Promise<H> {
  const patience = new Patience(patienceMs, waitMs, clock.now());
  // A grant ends the silence of the server, so that its loss must not count as news.
  const losses = new Patience(waitMs + patienceMs, 0, clock.now());
  const carryMs = Math.max(leastCarryMs, Math.min(ttlMs, patienceMs));
  for (;;) {
    const request = makeRequest();
    const hold = await repeat(patience, clock, scope, () => ask(request, patience, clock, scope));
    if (await hold.begin(carryMs)) return hold;
    const lost = new CallError(Code.UNAVAILABLE, "grants are lost on their way");
    const pause = losses.pause(lost, clock.now(), Math.random());
    if (pause === undefined) throw lost;
    await sleep(pause, scope.signal);
  }
}

function ask<I, O, G, H extends Hold>(
  request: Request<I, O, G, H>,
  patience: Patience,
  clock: Clock,
  scope: Cancellation,
): Promise<H> {
  return new Promise((resolve, reject) => {
    scope.throwIfAborted();
    let timer: NodeJS.Timeout;
    const sent = clock.now();
    const stream = request.start(patience.waitLeft(sent), {
      message(message) {
        patience.heard(clock.now());
        watch();
        const answer = request.read(message);
        if (answer === undefined) return;
        if ("queued" in answer) return request.queued(answer.queued);
        leave();
        if ("instead" in answer) return reject(answer.instead);
        resolve(request.accept(answer.granted, stream, sent));
      },
      end(error) {
        leave();
        reject(error ?? new CallError(Code.UNAVAILABLE, "the stream ended without an answer"));
      },
    });

    const watch = () => {
      clearTimeout(timer);
      const now = clock.now();
      timer = timeout(silent, patience.tryEndsAt(now) - now + earlyMs);
    };
    const leave = () => {
      clearTimeout(timer);
      scope.onAbort = undefined;
    };
    const stop = (reason: unknown) => {
      leave();
      request.abandon(stream);
      reject(reason);
    };
    const silent = () => stop(new CallError(Code.UNAVAILABLE, "the server does not answer"));
    watch();
    scope.onAbort = () => stop(scope.reason);
  });
}
