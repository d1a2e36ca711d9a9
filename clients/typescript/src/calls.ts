import type { DescMessage, DescMethodUnary, MessageShape } from "@bufbuild/protobuf";
import { CallError } from "./call-error.js";
import type { Core } from "./core.js";
import { Patience } from "./patience.js";
import { sleep } from "./time.js";

/** The longest time for one call. */
const longestCallMs = 10_000;

/** Makes a repeatable call, and repeats it within the patience. Throws the library's own errors. */
export async function patientCall<I extends DescMessage, O extends DescMessage>(
  { transport, clock }: Core,
  method: DescMethodUnary<I, O>,
  request: MessageShape<I>,
  patienceMs: number,
): Promise<MessageShape<O>> {
  const patience = new Patience(patienceMs, 0, clock.now());
  for (;;) {
    try {
      const left = patience.givesUpAt - clock.now();
      return await transport.unary(method, request, {
        deadlineMs: Math.min(longestCallMs, Math.max(1, left)),
      });
    } catch (error) {
      if (!(error instanceof CallError)) throw error;
      const pause =
        error.isTransient || error.isOverload ? patience.pause(error, clock.now(), Math.random()) : undefined;
      if (pause === undefined) throw error.toError();
      await sleep(pause);
    }
  }
}
