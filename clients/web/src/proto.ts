/**
 * The protobuf messages of Flower's Fleet API that a node needs, and no others: numbers and fields as in flwr.proto of
 * Flower 1.41. Reading is bounded by the bytes that are there and raises ProtoError; unknown fields are skipped.
 */

/** Bytes that are not the message they should be. */
export class ProtoError extends Error {}

export type Bytes = Uint8Array<ArrayBuffer>;

/** A number of a node or run: up to 64 bits, so never a JavaScript number. */
export type Id = bigint;

/** Values of a ConfigRecord that this client knows; sint64 and uint64 are bigint. */
export type Value = number | bigint | boolean | string | Bytes;

export interface Metadata {
  readonly runId: Id;
  readonly messageId: string;
  readonly source: Id;
  readonly target: Id;
  readonly replyTo: string;
  readonly group: string;
  /** Seconds that the message is worth answering after `createdAt`, a time in seconds of the server's clock. */
  readonly ttl: number;
  readonly type: string;
  readonly createdAt: number;
  readonly sourceTask: Id | null;
  readonly targetTask: Id | null;
}

export interface Tree {
  readonly id: string;
  readonly children: readonly Tree[];
}

export interface Pulled {
  readonly metadata: Metadata;
  readonly tree: Tree;
}

const VARINT = 0,
  DOUBLE = 1,
  BYTES = 2,
  WORD = 5;
const DEPTH = 32;
const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true });

export function join(...parts: readonly Uint8Array[]): Bytes {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

function varint(value: bigint): Uint8Array {
  const out: number[] = [];
  let rest = BigInt.asUintN(64, value);
  while (rest > 0x7fn) {
    out.push(Number(rest & 0x7fn) | 0x80);
    rest >>= 7n;
  }
  out.push(Number(rest));
  return Uint8Array.from(out);
}

const tag = (field: number, wire: number): Uint8Array => varint(BigInt(field * 8 + wire));
const NOTHING = new Uint8Array(0);

/** A field that is written even where it is empty: what a oneof needs. */
const uintAlways = (field: number, value: bigint): Uint8Array => join(tag(field, VARINT), varint(value));
const bytesAlways = (field: number, value: Uint8Array): Uint8Array =>
  join(tag(field, BYTES), varint(BigInt(value.length)), value);
const doubleAlways = (field: number, value: number): Uint8Array => {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setFloat64(0, value, true);
  return join(tag(field, DOUBLE), bytes);
};

const uint = (field: number, value: bigint): Uint8Array => (value ? uintAlways(field, value) : NOTHING);
const bytes = (field: number, value: Uint8Array): Uint8Array => (value.length ? bytesAlways(field, value) : NOTHING);
const text = (field: number, value: string): Uint8Array => bytes(field, encoder.encode(value));
const double = (field: number, value: number): Uint8Array => (value ? doubleAlways(field, value) : NOTHING);

interface Field {
  readonly number: number;
  /** A bigint of a varint, 8 or 4 bytes of a fixed number, or the bytes of all else. */
  readonly value: bigint | Bytes;
}

/** The fields of a message in the order they come. */
function fields(data: Uint8Array): Field[] {
  const found: Field[] = [];
  let at = 0;
  const number = (): bigint => {
    let value = 0n;
    for (let shift = 0n; shift < 70n; shift += 7n) {
      if (at >= data.length) throw new ProtoError("message ends inside a number");
      const byte = data[at++]!;
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return BigInt.asUintN(64, value);
    }
    throw new ProtoError("number of more than 10 bytes");
  };
  const take = (size: number): Bytes => {
    if (size > data.length - at)
      throw new ProtoError(`message ends early: ${size} bytes wanted, ${data.length - at} left`);
    at += size;
    return data.slice(at - size, at) as Bytes;
  };
  while (at < data.length) {
    const head = Number(number());
    const wire = head % 8;
    const value =
      wire === VARINT
        ? number()
        : wire === DOUBLE
          ? take(8)
          : wire === WORD
            ? take(4)
            : wire === BYTES
              ? take(Number(number()))
              : null;
    if (value === null || head < 8) throw new ProtoError(`field ${head >> 3} has unknown wire type ${wire}`);
    found.push({ number: Math.floor(head / 8), value });
  }
  return found;
}

/** A message whose fields are looked up by number; the last of a repeated scalar counts, as protobuf has it. */
class Read {
  private readonly all: Field[];

  constructor(data: Uint8Array) {
    this.all = fields(data);
  }

  private last(field: number): bigint | Bytes | undefined {
    return this.all.findLast((one) => one.number === field)?.value;
  }

  has(field: number): boolean {
    return this.last(field) !== undefined;
  }

  uint(field: number): bigint {
    const value = this.last(field) ?? 0n;
    if (typeof value !== "bigint") throw new ProtoError(`field ${field} is not a whole number`);
    return value;
  }

  bytes(field: number): Bytes {
    const value = this.last(field) ?? new Uint8Array(0);
    if (typeof value === "bigint") throw new ProtoError(`field ${field} is not bytes`);
    return value;
  }

  text(field: number): string {
    return utf8(this.bytes(field));
  }

  double(field: number): number {
    const value = this.last(field);
    if (value === undefined) return 0;
    if (typeof value === "bigint" || value.length !== 8) throw new ProtoError(`field ${field} is not a double`);
    return new DataView(value.buffer, value.byteOffset).getFloat64(0, true);
  }

  each(field: number): Bytes[] {
    return this.all
      .filter((one) => one.number === field)
      .map(({ value }) => {
        if (typeof value === "bigint") throw new ProtoError(`field ${field} is not bytes`);
        return value;
      });
  }

  /** The one field that is there, for a oneof. */
  only(): Field | undefined {
    return this.all.at(-1);
  }
}

function utf8(data: Uint8Array): string {
  try {
    return decoder.decode(data);
  } catch {
    throw new ProtoError("text that is not UTF-8");
  }
}

const node = (id: Id): Uint8Array => bytesAlways(1, uint(1, id));

// Requests and what comes back.

export const activateRequest = (publicKey: Uint8Array, interval: number): Bytes =>
  join(bytes(1, publicKey), double(2, interval));

export const activateResponse = (data: Uint8Array): Id => new Read(data).uint(1);

export const heartbeatRequest = (id: Id, interval: number): Bytes => join(node(id), double(2, interval));

export const heartbeatResponse = (data: Uint8Array): boolean => new Read(data).uint(1) !== 0n;

export const pullRequest = (id: Id): Bytes => join(node(id));

/** The messages of a PullMessagesResponse, each with the tree of its objects. */
export function pullResponse(data: Uint8Array): Pulled[] {
  const read = new Read(data);
  const messages = read.each(2).map(readMessage);
  const trees = read.each(3).map((one) => readTree(one));
  if (messages.length !== trees.length)
    throw new ProtoError(`${messages.length} messages came with ${trees.length} trees`);
  return messages.map((metadata, k) => ({ metadata, tree: trees[k]! }));
}

/** GetRun, PullObject and ConfirmMessageReceived begin alike: the node, the run, and for two of them an object. */
export const aboutRequest = (id: Id, run: Id, object = ""): Bytes => join(node(id), uint(2, run), text(3, object));

/** The content of an object; null while the server does not have it yet. */
export function pullObjectResponse(data: Uint8Array): Bytes | null {
  const read = new Read(data);
  if (!read.uint(1)) throw new ProtoError("the server does not know an object of its own message");
  return read.uint(2) ? read.bytes(3) : null;
}

/** An answer. How long it took is left out: that grows with what a phone holds. */
export function pushRequest(id: Id, metadata: Metadata, tree: Tree): Bytes {
  // The content travels as objects; here it is empty, but it must be there.
  const message = join(bytesAlways(1, writeMetadata(metadata)), bytesAlways(2, NOTHING));
  return join(node(id), bytesAlways(2, message), bytesAlways(3, writeTree(tree)));
}

/** Which objects the server lacks, and the session in which to push them. */
export function pushResponse(data: Uint8Array): { readonly wanted: string[]; readonly session: string } {
  const read = new Read(data);
  return { wanted: read.each(3).map(utf8), session: read.text(4) };
}

export const pushObjectRequest = (id: Id, run: Id, object: string, content: Uint8Array, session: string): Bytes =>
  join(node(id), uint(2, run), text(3, object), bytes(4, content), text(5, session));

export const pushObjectResponse = (data: Uint8Array): boolean => new Read(data).uint(1) !== 0n;

/** The run config of a GetRunResponse. Whole numbers are numbers here: no key of ours needs more than 53 bits. */
export function runResponse(data: Uint8Array): Record<string, number | boolean | string> {
  const config: Record<string, number | boolean | string> = {};
  for (const entry of new Read(new Read(data).bytes(1)).each(4)) {
    const read = new Read(entry);
    const value = scalar(new Read(read.bytes(2)).only());
    if (value !== null) config[read.text(1)] = value;
  }
  return config;
}

function scalar(field: Field | undefined): number | boolean | string | null {
  if (field === undefined) return null;
  const { number, value } = field;
  if (typeof value === "bigint") return number === 13 ? value !== 0n : Number(number === 8 ? unzigzag(value) : value);
  if (number === 1 && value.length === 8) return new DataView(value.buffer).getFloat64(0, true);
  return number === 14 ? utf8(value) : null;
}

// What objects hold.

export function writeMetadata(m: Metadata): Bytes {
  return join(
    uint(1, m.runId),
    text(2, m.messageId),
    uint(3, m.source),
    uint(4, m.target),
    text(5, m.replyTo),
    text(6, m.group),
    double(7, m.ttl),
    text(8, m.type),
    double(9, m.createdAt),
    m.sourceTask === null ? NOTHING : uintAlways(10, m.sourceTask),
    m.targetTask === null ? NOTHING : uintAlways(11, m.targetTask),
  );
}

/** The body of a Message object: its metadata; content travels as objects of their own. */
export const writeMessage = (metadata: Metadata): Bytes => bytesAlways(1, writeMetadata(metadata)) as Bytes;

export function readMessage(data: Uint8Array): Metadata {
  const read = new Read(new Read(data).bytes(1));
  return {
    runId: read.uint(1),
    messageId: read.text(2),
    source: read.uint(3),
    target: read.uint(4),
    replyTo: read.text(5),
    group: read.text(6),
    ttl: read.double(7),
    type: read.text(8),
    createdAt: read.double(9),
    sourceTask: read.has(10) ? read.uint(10) : null,
    targetTask: read.has(11) ? read.uint(11) : null,
  };
}

export const writeTree = (tree: Tree): Bytes =>
  join(text(1, tree.id), ...tree.children.map((child) => bytesAlways(2, writeTree(child))));

export function readTree(data: Uint8Array, depth = 0): Tree {
  if (depth > DEPTH) throw new ProtoError(`objects nested more than ${DEPTH} deep`);
  const read = new Read(data);
  return { id: read.text(1), children: read.each(2).map((child) => readTree(child, depth + 1)) };
}

/** The body of a ConfigRecord. A number is written as a double, a bigint as a signed whole number. */
export function writeRecord(record: Readonly<Record<string, Value>>): Bytes {
  return join(
    ...Object.entries(record).map(([key, value]) =>
      bytesAlways(1, join(text(1, key), bytesAlways(2, writeValue(value)))),
    ),
  );
}

function writeValue(value: Value): Uint8Array {
  if (typeof value === "number") return doubleAlways(1, value);
  if (typeof value === "bigint") return uintAlways(2, (value << 1n) ^ (value >> 63n));
  if (typeof value === "boolean") return uintAlways(4, value ? 1n : 0n);
  return typeof value === "string" ? bytesAlways(5, encoder.encode(value)) : bytesAlways(6, value);
}

/** The single values of a ConfigRecord; lists, which no message of ours has, are left out. */
export function readRecord(data: Uint8Array): Record<string, Value> {
  const record: Record<string, Value> = {};
  for (const item of new Read(data).each(1)) {
    const read = new Read(item);
    const field = new Read(read.bytes(2)).only();
    const value = field === undefined ? null : readValue(field);
    if (value !== null) record[read.text(1)] = value;
  }
  return record;
}

function readValue({ number, value }: Field): Value | null {
  if (typeof value === "bigint")
    return number === 2 ? unzigzag(value) : number === 3 ? value : number === 4 ? value !== 0n : null;
  if (number === 1 && value.length === 8) return new DataView(value.buffer).getFloat64(0, true);
  return number === 5 ? utf8(value) : number === 6 ? value : null;
}

const unzigzag = (value: bigint): bigint => (value >> 1n) ^ -(value & 1n);
