/**
 * The cancellation of one turn or lease, from its request to its end. Its signal is made when
 * somebody asks for it: most handlers do not, and signals of Node cost as much as a message.
 */
export class Cancellation {
  readonly #caller: AbortSignal | undefined;
  readonly #cancel = () => this.abort(this.#caller?.reason);
  #controller: AbortController | undefined;
  #aborted: { readonly reason: unknown } | undefined;
  /** Called when it is aborted. */
  onAbort: (() => void) | undefined;

  constructor(caller: AbortSignal | undefined) {
    this.#caller = caller;
    if (caller?.aborted) this.#cancel();
    else caller?.addEventListener("abort", this.#cancel, { once: true });
  }

  get signal(): AbortSignal {
    if (!this.#controller) {
      this.#controller = new AbortController();
      if (this.#aborted) this.#controller.abort(this.#aborted.reason);
    }
    return this.#controller.signal;
  }

  get reason(): unknown {
    return this.#aborted?.reason;
  }

  throwIfAborted(): void {
    if (this.#aborted) throw this.#aborted.reason;
  }

  abort(reason: unknown): void {
    if (this.#aborted) return;
    this.#aborted = { reason };
    this.#controller?.abort(reason);
    this.onAbort?.();
  }

  /** The caller's signal cancels it no more. */
  leave(): void {
    this.#caller?.removeEventListener("abort", this.#cancel);
  }
}
