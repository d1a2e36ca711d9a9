/** A result as it is stored. */
export interface Encoded {
  readonly data: Uint8Array;
  /** The media type or the name of the type; at most 255 bytes. */
  readonly type: string;
}

/** How results are stored and replayed. */
export interface Codec<T = unknown> {
  encode(value: T): Encoded;
  decode(data: Uint8Array, type: string): T;
}

/** A result that was read, or the codec's error. */
export type Decoded = { readonly result: unknown } | { readonly error: unknown };

export function decodeOrError(codec: Codec, data: Uint8Array, type: string): Decoded {
  try {
    return { result: codec.decode(data, type) };
  } catch (error) {
    return { error };
  }
}

const json = "application/json";
const bytes = "application/octet-stream";
const nothing: Encoded = { data: new Uint8Array(), type: "" };
const decoder = new TextDecoder();

/** JSON. Bytes are stored as they are; `undefined` stores nothing. */
export const jsonCodec: Codec = {
  encode(value) {
    if (value === undefined) return nothing;
    if (value instanceof Uint8Array) return { data: value, type: bytes };
    const text: string | undefined = JSON.stringify(value);
    return text === undefined ? nothing : { data: Buffer.from(text), type: json };
  },
  decode(data, type) {
    if (type === json) return JSON.parse(decoder.decode(data));
    return data.length === 0 && type === "" ? undefined : data;
  },
};

/** JSON whose results pass through `parse` when they are replayed, such as `schema.parse` of zod. */
export function jsonCodecOf<T>(parse: (value: unknown) => T): Codec<T> {
  return {
    encode: jsonCodec.encode,
    decode: (data, type) => parse(jsonCodec.decode(data, type)),
  };
}
