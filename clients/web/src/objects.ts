/**
 * Flower's content-addressed objects. Every part of a message is `TYPE CHILD,CHILD LENGTH\0BODY`, and its name is the
 * SHA-256 of that. A message of ours has at most six: Message, RecordDict, ConfigRecord, and for a large frame
 * ArrayRecord, Array and its chunks.
 */
import {
  type Bytes,
  type Metadata,
  type Tree,
  type Value,
  join,
  readRecord,
  writeMessage,
  writeRecord,
} from "./proto.js";

/** An object that is not what its name or its parent says. */
export class ObjectError extends Error {}

export interface Part {
  readonly type: string;
  readonly children: readonly string[];
  readonly body: Bytes;
}

/** An object as it travels, by its name, and those it consists of. */
export interface Piece {
  readonly tree: Tree;
  readonly parts: ReadonlyMap<string, Bytes>;
}

/** The records of a message, and frames that came as arrays. */
export interface Content {
  readonly records: Readonly<Record<string, Readonly<Record<string, Value>>>>;
  readonly arrays: Readonly<Record<string, Bytes>>;
}

/** A frame above this many bytes travels as an array, in chunks of CHUNK bytes. */
export const LARGE = 4 * 1024 * 1024;
const CHUNK = 5 * 1024 * 1024; // Flower's own
const STYPE = "fedkd.frame";
const MOST = 512 * 1024 * 1024;
const encoder = new TextEncoder();
const decoder = new TextDecoder();

export async function sha256(data: Uint8Array): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", data as Bytes);
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Put an object together of its body and its children. */
export async function pack(type: string, body: Uint8Array, children: readonly Piece[] = []): Promise<Piece> {
  const unique = [...new Map(children.map((child) => [child.tree.id, child])).values()];
  const head = `${type} ${unique.map((child) => child.tree.id).join(",")} ${body.length}\0`;
  const content = join(encoder.encode(head), body);
  const id = await sha256(content);
  const parts = new Map(unique.flatMap((child) => [...child.parts]));
  return { tree: { id, children: unique.map((child) => child.tree) }, parts: parts.set(id, content) };
}

export function unpack(content: Uint8Array): Part {
  const end = content.subarray(0, MOST).indexOf(0);
  const [type, children, size, ...more] = decoder.decode(content.subarray(0, Math.max(end, 0))).split(" ");
  const body = content.slice(end + 1) as Bytes;
  if (end < 0 || more.length || size === undefined || Number(size) !== body.length)
    throw new ObjectError("an object whose head does not fit its body");
  return { type: type!, children: children ? children.split(",") : [], body };
}

/** JSON with the spaces that Python puts in: so our objects have the names, and sizes, that Flower's would have. */
function spaced(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(spaced).join(", ")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  return `{${Object.entries(value)
    .map(([key, one]) => `${JSON.stringify(key)}: ${spaced(one)}`)
    .join(", ")}}`;
}

async function dict(type: string, members: Readonly<Record<string, Piece>>): Promise<Piece> {
  const names = Object.fromEntries(Object.entries(members).map(([name, piece]) => [name, piece.tree.id]));
  return pack(type, encoder.encode(spaced(names)), Object.values(members));
}

/** The frame as an ArrayRecord, for what is too large for one record. */
async function large(frame: Bytes): Promise<Piece> {
  const chunks: Piece[] = [];
  for (let at = 0; at < frame.length; at += CHUNK)
    chunks.push(await pack("ArrayChunk", frame.subarray(at, at + CHUNK)));
  const unique = [...new Set(chunks.map((chunk) => chunk.tree.id))];
  const about = {
    dtype: "uint8",
    shape: [frame.length],
    stype: STYPE,
    arraychunk_ids: chunks.map((chunk) => unique.indexOf(chunk.tree.id)),
  };
  const array = await pack("Array", encoder.encode(spaced(about)), chunks);
  return dict("ArrayRecord", { frame: array });
}

/** A message: `name` is the record that holds `record`, and `frame` if there is one. */
export async function message(
  metadata: Metadata,
  name: string,
  record: Readonly<Record<string, Value>>,
  frame: Bytes | null = null,
): Promise<Piece> {
  const split = frame !== null && frame.length > LARGE;
  const whole = frame === null || split ? record : { frame, ...record };
  const members: Record<string, Piece> = { [name]: await pack("ConfigRecord", writeRecord(whole)) };
  if (frame !== null && split) members["frame"] = await large(frame);
  return pack("Message", writeMessage({ ...metadata, messageId: "" }), [await dict("RecordDict", members)]);
}

/** All names of a tree, children before their parents, each once. */
export function names(tree: Tree): string[] {
  return [...new Set([...tree.children.flatMap(names), tree.id])];
}

/** The content of a message from its objects, which `part` finds by name and has checked. */
export function content(tree: Tree, part: (id: string) => Part): Content {
  const records: Record<string, Record<string, Value>> = {};
  const arrays: Record<string, Bytes> = {};
  const top = of(part, tree.id, "Message");
  for (const [name, id] of members(of(part, top.children[0] ?? "", "RecordDict"))) {
    const member = part(id);
    if (member.type === "ConfigRecord") records[name] = readRecord(member.body);
    else if (member.type === "ArrayRecord")
      for (const [key, array] of members(member))
        if (key === "frame" || name === "frame") arrays[name] = read(of(part, array, "Array"), part);
  }
  return { records, arrays };
}

function of(part: (id: string) => Part, id: string, type: string): Part {
  const found = part(id);
  if (found.type !== type) throw new ObjectError(`expected an object ${type}, got ${found.type.slice(0, 40)}`);
  return found;
}

function json(body: Uint8Array): unknown {
  try {
    return JSON.parse(decoder.decode(body));
  } catch {
    throw new ObjectError("an object whose body is not JSON");
  }
}

function members(part: Part): [string, string][] {
  const found = json(part.body);
  if (typeof found !== "object" || found === null) throw new ObjectError("an object that names no members");
  return Object.entries(found).filter((entry): entry is [string, string] => typeof entry[1] === "string");
}

function read(array: Part, part: (id: string) => Part): Bytes {
  const about = json(array.body) as { stype?: unknown; arraychunk_ids?: unknown };
  const order = about.arraychunk_ids;
  if (about.stype !== STYPE || !Array.isArray(order)) throw new ObjectError(`an array that is not a ${STYPE}`);
  const chunks = order.map((k) => of(part, array.children[Number(k)] ?? "", "ArrayChunk").body);
  if (chunks.reduce((sum, chunk) => sum + chunk.length, 0) > MOST)
    throw new ObjectError(`a frame of more than ${MOST} bytes`);
  return join(...chunks);
}
