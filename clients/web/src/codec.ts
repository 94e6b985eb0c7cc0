/** A query is read and a release is written here, byte for byte as in fedkd/codec.py. */

import { Refusal } from "./errors.js";
import { FLAGS, NONE, QUERY, read, RELEASE, unpackRows, write, Writer } from "./frames.js";
import { hex } from "./random.js";
import type { Ballot } from "./release.js";
import { CODES, nameOf, pack, packWeights, unpack } from "./symbols.js";

/** Soft labels `p` (n, classes) that the server tells of the transfer set's `rows` (n,). */
export interface Feedback {
  rows: Int32Array;
  p: Float32Array;
}

/** What the server asks in a round: soft labels on `rows` (n,) of the transfer set, sorted. */
export interface Query {
  round: number;
  rows: Int32Array;
  classes: number;
  fingerprint: string;
  feedback: Feedback | null;
}

/** What was done to private data. Its numbers are relative to the sensitivity; what is `non_private` costs infinity. */
export type Event =
  | { kind: "non_private" }
  | { kind: "no_op" }
  | { kind: "sampled_gaussian"; rate: number; noise: number; count: number };

/** Return the query of a frame, which must be about our transfer set of `size` rows and as many classes as we know. */
export function decodeQuery(frame: Uint8Array, fingerprint: string, size: number, classes: number): Query {
  const [header, reader] = read(frame, QUERY);
  const told = Object.entries(FLAGS).filter(([, flag]) => header.flags & flag);
  if (told.length) {
    const names = told.map(([name]) => name).join(", ");
    throw new Refusal(`feedback comes as ${names}, which a phone does not read; set broadcast = 'float16'`);
  }
  const encoding = header.encoding === NONE ? "" : nameOf(header.encoding);
  const theirs = hex(header.fingerprint) + hex(reader.take(24));
  if (theirs !== fingerprint) {
    throw new Refusal(`the server's transfer set is ${theirs.slice(0, 16)}, ours is ${fingerprint.slice(0, 16)}`);
  }
  if (header.classes !== classes) {
    throw new Refusal(`the server asks about ${header.classes} classes, this phone knows ${classes}`);
  }
  const rows = reader.varint();
  if (rows !== size) throw new Refusal(`query is about ${rows} rows, the transfer set has ${size}`);
  const asked = unpackRows(reader, size);
  let feedback: Feedback | null = null;
  if (encoding) {
    const where = unpackRows(reader, size);
    if (where.length !== header.rows) {
      throw new Refusal(`feedback names ${where.length} rows and carries ${header.rows}`);
    }
    feedback = { rows: where, p: unpack(reader, where.length, encoding, classes) };
  }
  reader.end();
  return { round: header.round, rows: asked, classes, fingerprint, feedback };
}

/** Return the frame that answers `query` with `ballot`, which cost `event`; `client` is a 64-bit key. */
export function encodeRelease(ballot: Ballot, event: Event, query: Query, client: bigint): Uint8Array {
  const body = new Writer().raw(packEvent(event)).raw(packWeights(ballot.w, ballot.weightBits));
  const { classes, round, fingerprint } = query;
  const sha = Uint8Array.from({ length: 8 }, (_, i) => parseInt(fingerprint.slice(2 * i, 2 * i + 2), 16));
  const encoding = CODES[ballot.encoding]!;
  const header = { kind: RELEASE, encoding, classes, rows: ballot.w.length, round, client, flags: 0, base: 0 };
  return write({ ...header, fingerprint: sha }, body.raw(pack(ballot.p, ballot.encoding, classes)).done());
}

function packEvent(event: Event): Uint8Array {
  if (event.kind !== "sampled_gaussian") return Uint8Array.of(event.kind === "no_op" ? 1 : 0);
  return new Writer().byte(3).float64(event.rate).float64(event.noise).float64(event.count).float64(0).done();
}
