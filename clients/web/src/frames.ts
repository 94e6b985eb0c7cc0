/** What every frame has, as fedkd/frames.py writes it: the header, a careful reader, packed integers, rows. */

import { Refusal } from "./errors.js";

/** The version of frames that this phone reads and writes. */
export const VERSION = 2;
export const QUERY = 1;
export const RELEASE = 2;
/** Encoding of a query that brings no feedback. */
export const NONE = 255;
export const FLAGS = { delta: 1, range_code: 2, zstd: 4, taught: 8 } as const;
const MAX_ROWS = 10_000_000;
const MAX_CLASSES = 65_535;
const MAX_CELLS = 2 ** 30;
const FIXED = 18;

/** What comes before the body. `client` is a 64-bit key; `base` is the round that a delta starts from, 0 for none. */
export interface Header {
  kind: number;
  encoding: number;
  classes: number;
  rows: number;
  round: number;
  client: bigint;
  fingerprint: Uint8Array;
  flags: number;
  base: number;
}

/** Collects bytes. */
export class Writer {
  private bytes: number[] = [];

  byte(value: number): this {
    this.bytes.push(value & 255);
    return this;
  }

  raw(values: ArrayLike<number>): this {
    for (let i = 0; i < values.length; i++) this.bytes.push(values[i]!);
    return this;
  }

  /** Seven bits a byte, the lowest first. */
  varint(value: number | bigint): this {
    let left = BigInt(value);
    for (; left > 127n; left >>= 7n) this.bytes.push(Number(left & 127n) | 128);
    return this.byte(Number(left));
  }

  float32(value: number): this {
    return this.raw(new Uint8Array(new Float32Array([value]).buffer));
  }

  float64(value: number): this {
    return this.raw(new Uint8Array(new Float64Array([value]).buffer));
  }

  done(): Uint8Array {
    return Uint8Array.from(this.bytes);
  }
}

/** Takes bytes from the front and refuses to read past the end, so no length is believed before it is seen. */
export class Reader {
  constructor(
    private readonly body: Uint8Array,
    private at = 0,
  ) {}

  take(count: number): Uint8Array {
    const left = this.body.length - this.at;
    if (count > left) throw new Refusal(`frame ends early: ${count} bytes expected, ${left} left`);
    this.at += count;
    return this.body.subarray(this.at - count, this.at);
  }

  byte(): number {
    return this.take(1)[0]!;
  }

  /** The next number of at most 64 bits, written as short as can be. */
  varint64(): bigint {
    let value = 0n;
    for (let place = 0; place < 10; place++) {
      const byte = this.byte();
      value |= BigInt(byte & 127) << BigInt(7 * place);
      if (byte < 128) {
        if ((place > 0 && byte === 0) || value >= 1n << 64n) break;
        return value;
      }
    }
    throw new Refusal("a number in the frame is too long");
  }

  varint(): number {
    const value = this.varint64();
    return value > Number.MAX_SAFE_INTEGER ? Number.MAX_SAFE_INTEGER : Number(value);
  }

  end(): void {
    const left = this.body.length - this.at;
    if (left) throw new Refusal(`frame has ${left} bytes too many`);
  }
}

/** Return the frame of `header` and `body`. */
export function write(header: Header, body: Uint8Array): Uint8Array {
  check(header);
  const start = new Writer().raw([70, 75, 68, VERSION, header.kind | (header.flags << 4), header.encoding]);
  const first = start.raw(header.fingerprint.subarray(0, 8)).done();
  const numbers = new Writer().varint(header.classes).varint(header.rows).varint(header.round).varint(header.client);
  if (header.base) numbers.varint(header.base);
  const rest = numbers.done();
  const frame = new Uint8Array(FIXED + rest.length + body.length);
  frame.set(first);
  frame.set(rest, FIXED);
  frame.set(body, FIXED + rest.length);
  new DataView(frame.buffer).setUint32(FIXED - 4, crc32(frame.subarray(FIXED), crc32(first)), true);
  return frame;
}

/** Return the header of an unharmed frame of `kind`, and a reader of its body. */
export function read(frame: Uint8Array, kind: number): [Header, Reader] {
  if (frame.length < FIXED) {
    throw new Refusal(`frame of ${frame.length} bytes is shorter than its header of ${FIXED} and more`);
  }
  if (frame[0] !== 70 || frame[1] !== 75 || frame[2] !== 68) throw new Refusal("not a fedkd frame");
  if (frame[3] !== VERSION) {
    throw new Refusal(
      `frame has version ${frame[3]}, this page reads ${VERSION}: reload it, both sides need the same fedkd`,
    );
  }
  const reader = new Reader(frame, FIXED);
  const flags = frame[4]! >> 4;
  const [classes, rows, round] = [reader.varint(), reader.varint(), reader.varint()];
  const client = reader.varint64();
  const base = flags & FLAGS.delta ? reader.varint() : 0;
  const fingerprint = frame.slice(6, 14);
  const header: Header = {
    kind: frame[4]! & 15,
    encoding: frame[5]!,
    classes,
    rows,
    round,
    client,
    fingerprint,
    flags,
    base,
  };
  check(header);
  if (header.kind !== kind) throw new Refusal(`frame is of kind ${header.kind}, expected ${kind}`);
  const sum = crc32(frame.subarray(FIXED), crc32(frame.subarray(0, FIXED - 4)));
  if (sum !== new DataView(frame.buffer, frame.byteOffset).getUint32(FIXED - 4, true)) {
    throw new Refusal("frame is damaged: its checksum does not match");
  }
  return [header, reader];
}

function check(header: Header): void {
  const { classes, rows, round, base } = header;
  const sound =
    classes >= 1 &&
    classes <= MAX_CLASSES &&
    rows >= 0 &&
    rows <= MAX_ROWS &&
    rows * classes <= MAX_CELLS &&
    round >= 1 &&
    round < 2 ** 32 &&
    base > 0 === (header.flags & FLAGS.delta) > 0 &&
    base < round &&
    header.client >= 0n &&
    header.client < 1n << 64n;
  if (!sound) throw new Refusal(`impossible frame: ${classes} classes, ${rows} rows, round ${round}`);
}

const TABLE = Int32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let i = 0; i < 8; i++) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
  return c;
});

/** The CRC-32 of `bytes` after what `before` is the sum of. */
export function crc32(bytes: Uint8Array, before = 0): number {
  let c = ~before;
  for (let i = 0; i < bytes.length; i++) c = TABLE[(c ^ bytes[i]!) & 255]! ^ (c >>> 8);
  return ~c >>> 0;
}

/** Write unsigned integers, `bits` each, most significant bit first, padded with zeros to a whole byte. */
export function packBits(values: ArrayLike<number>, bits: number): Uint8Array {
  const out = new Uint8Array(Math.ceil((values.length * bits) / 8));
  let at = 0;
  for (let i = 0; i < values.length; i++) {
    for (let place = bits - 1; place >= 0; place--, at++) {
      if ((values[i]! >>> place) & 1) out[at >> 3]! |= 128 >> (at & 7);
    }
  }
  return out;
}

/** Return `count` unsigned integers of `bits` each. */
export function unpackBits(reader: Reader, count: number, bits: number): Uint32Array {
  const raw = reader.take(Math.ceil((count * bits) / 8));
  const values = new Uint32Array(count);
  for (let i = 0, at = 0; i < count; i++) {
    let value = 0;
    for (let place = 0; place < bits; place++, at++) value = (value << 1) | ((raw[at >> 3]! >> (7 - (at & 7))) & 1);
    values[i] = value;
  }
  return values;
}

/** Return the sorted rows of `size` that are named: all, a bitmap, or few of many (Elias and Fano, 1974). */
export function unpackRows(reader: Reader, size: number): Int32Array {
  const form = reader.byte();
  if (form === 0) return Int32Array.from({ length: size }, (_, i) => i);
  if (form === 1) return ones(reader.take(Math.ceil(size / 8)), size);
  if (form !== 2) throw new Refusal(`unknown form of rows ${form}`);
  const count = reader.varint();
  if (count === 0) return new Int32Array(0);
  if (count >= size) throw new Refusal(`${count} rows were named one by one, of ${size}`);
  const low = Math.max(0, 31 - Math.clz32(Math.floor(size / count)));
  const lows = low ? unpackBits(reader, count, low) : new Uint32Array(count);
  const length = count + ((size - 1) >> low) + 1;
  const places = ones(reader.take(Math.ceil(length / 8)), length);
  const rows = places.map((place, i) => ((place - i) << low) | (lows[i] ?? 0));
  const ordered = rows.every((row, i) => row < size && (i === 0 || row > rows[i - 1]!));
  if (rows.length !== count || !ordered) throw new Refusal(`rows must be ${count} different ones of ${size}, in order`);
  return rows;
}

function ones(raw: Uint8Array, size: number): Int32Array {
  const found: number[] = [];
  for (let i = 0; i < size; i++) if ((raw[i >> 3]! >> (7 - (i & 7))) & 1) found.push(i);
  return Int32Array.from(found);
}
