// src/about.ts
var AboutError = class extends Error {
};
var WIRE = 2;
var whole = (value, least, most) => typeof value === "number" && Number.isInteger(value) && value >= least && value <= most;
function readAbout(said) {
  if (typeof said !== "object" || said === null) throw new AboutError("the server says nothing of its run");
  const about = said;
  const { wire, classes, shape, rows, fingerprint: fingerprint2, config, shards } = about;
  if (wire !== WIRE)
    throw new AboutError(`the server speaks version ${String(wire)}, this page version ${WIRE}: reload it`);
  if (!whole(classes, 2, 65535)) throw new AboutError(`classes must be a number from 2 on, got ${String(classes)}`);
  if (!Array.isArray(shape) || !shape.length || shape.length > 4 || !shape.every((n) => whole(n, 1, 1e6)))
    throw new AboutError(`the shape of an input must be whole numbers, got ${JSON.stringify(shape)}`);
  if (!whole(rows, 1, 1e7)) throw new AboutError(`the transfer set must have samples, got ${String(rows)}`);
  if (typeof fingerprint2 !== "string" || !/^[0-9a-f]{64}$/.test(fingerprint2))
    throw new AboutError("the transfer set has no fingerprint");
  if (typeof config !== "object" || config === null) throw new AboutError("the server names no settings of its run");
  const [names2, authority] = [about["class_names"], about["authority"]];
  const named = Array.isArray(names2) && names2.length === classes ? names2.map(String) : [];
  return {
    name: String(about["name"] ?? "run").slice(0, 80),
    version: String(about["fedkd"] ?? "?").slice(0, 20),
    classes,
    classNames: named.length ? named : Array.from({ length: classes }, (_, c) => String(c)),
    shape,
    rows,
    fingerprint: fingerprint2,
    config,
    shards: whole(shards, 0, 1e6) ? shards : 0,
    authority: typeof authority === "string" ? authority.slice(0, 64) : ""
  };
}
var FREE = /* @__PURE__ */ new Set([
  "output",
  "resume",
  "deadline",
  "grace",
  "pooled",
  "record",
  "resolved",
  "quorum",
  "late",
  "preset",
  "threads",
  "run-name"
  // known once it runs: what a ledger files it under, as the run's number is
]);
function differs(agreed, run) {
  const keys = /* @__PURE__ */ new Set([...Object.keys(agreed), ...Object.keys(run)]);
  return [...keys].sort().find((key) => !FREE.has(key) && agreed[key] !== run[key]) ?? null;
}
var sameRun = (a, b) => a.name === b.name && a.fingerprint === b.fingerprint && a.classes === b.classes && differs(a.config, b.config) === null;

// src/arrays.ts
var FileError = class extends Error {
};
var SAFE = {
  F16: "f2",
  F32: "f4",
  F64: "f8",
  U8: "u1",
  I8: "i1",
  U16: "u2",
  I16: "i2",
  U32: "u4",
  I32: "i4",
  U64: "u8",
  I64: "i8",
  BOOL: "b1"
};
var count = (shape) => shape.reduce((product, n) => product * n, 1);
var decoder = new TextDecoder();
function tensor(bytes2, kind, shape, name) {
  const size = Number(kind[1]), n = count(shape);
  if (!shape.every((axis) => Number.isSafeInteger(axis) && axis >= 0) || n * size !== bytes2.length)
    throw new FileError(`${name} is cut short: ${bytes2.length} bytes for ${shape.join(" x ")} numbers`);
  const buffer = bytes2.slice().buffer, view = new DataView(buffer);
  if (kind === "u1" || kind === "b1") return { shape, data: new Uint8Array(buffer) };
  if (kind === "f4") return { shape, data: new Float32Array(buffer) };
  if (kind === "f8") return { shape, data: Float32Array.from(new Float64Array(buffer)) };
  if (kind === "f2") return { shape, data: Float32Array.from(new Uint16Array(buffer), half) };
  const at = {
    i1: (k) => view.getInt8(k),
    u2: (k) => view.getUint16(2 * k, true),
    i2: (k) => view.getInt16(2 * k, true),
    u4: (k) => view.getUint32(4 * k, true),
    i4: (k) => view.getInt32(4 * k, true),
    u8: (k) => Number(view.getBigUint64(8 * k, true)),
    i8: (k) => Number(view.getBigInt64(8 * k, true))
  };
  return { shape, data: Int32Array.from({ length: n }, (_, k) => at[kind](k)) };
}
function half(bits) {
  const sign2 = bits & 32768 ? -1 : 1, exponent = bits >> 10 & 31, rest = bits & 1023;
  if (exponent === 31) return rest ? NaN : sign2 * Infinity;
  return sign2 * (exponent ? 2 ** (exponent - 15) * (1 + rest / 1024) : 2 ** -14 * (rest / 1024));
}
function safetensors(bytes2) {
  const view = new DataView(bytes2.buffer, bytes2.byteOffset, bytes2.byteLength);
  const size = bytes2.length >= 8 ? Number(view.getBigUint64(0, true)) : Infinity;
  if (size > bytes2.length - 8 || size > 1 << 24) throw new FileError("this is not a safetensors file");
  const found = /* @__PURE__ */ new Map();
  let header;
  try {
    header = JSON.parse(decoder.decode(bytes2.subarray(8, 8 + size)));
  } catch {
    throw new FileError("this is not a safetensors file");
  }
  for (const [name, { dtype, shape, data_offsets }] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const kind = SAFE[String(dtype)];
    if (!kind || !Array.isArray(shape) || !Array.isArray(data_offsets))
      throw new FileError(`${name}: ${String(dtype)} is not read here`);
    const [from, to] = data_offsets.map((at) => 8 + size + Number(at));
    found.set(name, tensor(bytes2.subarray(from, to), kind, shape.map(Number), name));
  }
  return found;
}
function npy(bytes2, name) {
  const view = new DataView(bytes2.buffer, bytes2.byteOffset, bytes2.byteLength);
  if (bytes2.length < 12 || decoder.decode(bytes2.subarray(1, 6)) !== "NUMPY")
    throw new FileError(`${name} is not an array of numpy`);
  const wide = bytes2[6] > 1, size = wide ? view.getUint32(8, true) : view.getUint16(8, true), start = (wide ? 12 : 10) + size;
  const header = decoder.decode(bytes2.subarray(wide ? 12 : 10, start));
  const kind = /'descr': '[<|]([fiub]\d)'/.exec(header)?.[1];
  const shape = /'shape': \(([\d, ]*)\)/.exec(header)?.[1];
  if (!kind || shape === void 0 || header.includes("'fortran_order': True"))
    throw new FileError(`${name}: save it as plain numbers, row by row (numpy.ascontiguousarray)`);
  return tensor(
    bytes2.subarray(start),
    kind,
    shape.split(",").filter((part) => part.trim()).map(Number),
    name
  );
}
async function npz(bytes2) {
  const view = new DataView(bytes2.buffer, bytes2.byteOffset, bytes2.byteLength);
  const found = /* @__PURE__ */ new Map();
  let end = bytes2.length - 22;
  while (end >= 0 && view.getUint32(end, true) !== 101010256) end--;
  if (end < 0) throw new FileError("this is not an npz file");
  let at = view.getUint32(end + 16, true);
  for (let k = view.getUint16(end + 10, true); k > 0; k--) {
    if (at + 46 > bytes2.length || view.getUint32(at, true) !== 33639248)
      throw new FileError("this npz file is damaged");
    const method = view.getUint16(at + 10, true), size = view.getUint32(at + 20, true), full = view.getUint32(at + 24, true);
    const named = view.getUint16(at + 28, true), local = view.getUint32(at + 42, true);
    const name = decoder.decode(bytes2.subarray(at + 46, at + 46 + named)).replace(/\.npy$/, "");
    at += 46 + named + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
    if (local + 30 > bytes2.length || method !== 0 && method !== 8) throw new FileError("this npz file is damaged");
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    const stored = bytes2.subarray(start, start + size);
    found.set(name, npy(method ? await inflate(stored, full) : stored, name));
  }
  return found;
}
async function inflate(data, size) {
  const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const reader = stream.getReader(), whole2 = new Uint8Array(Math.min(size, 1 << 29));
  let at = 0;
  for (; ; ) {
    const { done: done2, value } = await reader.read().catch(() => ({ done: true, value: void 0 }));
    if (done2 || !value) break;
    if (at + value.length > whole2.length) throw new FileError("this npz file unpacks to more than it says");
    whole2.set(value, at);
    at += value.length;
  }
  if (at !== size) throw new FileError("this npz file is damaged");
  return whole2;
}

// src/proto.ts
var ProtoError = class extends Error {
};
var VARINT = 0;
var DOUBLE = 1;
var BYTES = 2;
var WORD = 5;
var DEPTH = 32;
var encoder = new TextEncoder();
var decoder2 = new TextDecoder("utf-8", { fatal: true });
function join(...parts) {
  const whole2 = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole2.set(part, at);
    at += part.length;
  }
  return whole2;
}
function varint(value) {
  const out = [];
  let rest = BigInt.asUintN(64, value);
  while (rest > 0x7fn) {
    out.push(Number(rest & 0x7fn) | 128);
    rest >>= 7n;
  }
  out.push(Number(rest));
  return Uint8Array.from(out);
}
var tag = (field, wire) => varint(BigInt(field * 8 + wire));
var NOTHING = new Uint8Array(0);
var uintAlways = (field, value) => join(tag(field, VARINT), varint(value));
var bytesAlways = (field, value) => join(tag(field, BYTES), varint(BigInt(value.length)), value);
var doubleAlways = (field, value) => {
  const bytes2 = new Uint8Array(8);
  new DataView(bytes2.buffer).setFloat64(0, value, true);
  return join(tag(field, DOUBLE), bytes2);
};
var uint = (field, value) => value ? uintAlways(field, value) : NOTHING;
var bytes = (field, value) => value.length ? bytesAlways(field, value) : NOTHING;
var text = (field, value) => bytes(field, encoder.encode(value));
var double = (field, value) => value ? doubleAlways(field, value) : NOTHING;
function fields(data) {
  const found = [];
  let at = 0;
  const number = () => {
    let value = 0n;
    for (let shift = 0n; shift < 70n; shift += 7n) {
      if (at >= data.length) throw new ProtoError("message ends inside a number");
      const byte = data[at++];
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return BigInt.asUintN(64, value);
    }
    throw new ProtoError("number of more than 10 bytes");
  };
  const take = (size) => {
    if (size > data.length - at)
      throw new ProtoError(`message ends early: ${size} bytes wanted, ${data.length - at} left`);
    at += size;
    return data.slice(at - size, at);
  };
  while (at < data.length) {
    const head = Number(number());
    const wire = head % 8;
    const value = wire === VARINT ? number() : wire === DOUBLE ? take(8) : wire === WORD ? take(4) : wire === BYTES ? take(Number(number())) : null;
    if (value === null || head < 8) throw new ProtoError(`field ${head >> 3} has unknown wire type ${wire}`);
    found.push({ number: Math.floor(head / 8), value });
  }
  return found;
}
var Read = class {
  all;
  constructor(data) {
    this.all = fields(data);
  }
  last(field) {
    return this.all.findLast((one) => one.number === field)?.value;
  }
  has(field) {
    return this.last(field) !== void 0;
  }
  uint(field) {
    const value = this.last(field) ?? 0n;
    if (typeof value !== "bigint") throw new ProtoError(`field ${field} is not a whole number`);
    return value;
  }
  bytes(field) {
    const value = this.last(field) ?? new Uint8Array(0);
    if (typeof value === "bigint") throw new ProtoError(`field ${field} is not bytes`);
    return value;
  }
  text(field) {
    return utf8(this.bytes(field));
  }
  double(field) {
    const value = this.last(field);
    if (value === void 0) return 0;
    if (typeof value === "bigint" || value.length !== 8) throw new ProtoError(`field ${field} is not a double`);
    return new DataView(value.buffer, value.byteOffset).getFloat64(0, true);
  }
  each(field) {
    return this.all.filter((one) => one.number === field).map(({ value }) => {
      if (typeof value === "bigint") throw new ProtoError(`field ${field} is not bytes`);
      return value;
    });
  }
  /** The one field that is there, for a oneof. */
  only() {
    return this.all.at(-1);
  }
};
function utf8(data) {
  try {
    return decoder2.decode(data);
  } catch {
    throw new ProtoError("text that is not UTF-8");
  }
}
var node = (id) => bytesAlways(1, uint(1, id));
var activateRequest = (publicKey, interval) => join(bytes(1, publicKey), double(2, interval));
var activateResponse = (data) => new Read(data).uint(1);
var heartbeatRequest = (id, interval) => join(node(id), double(2, interval));
var heartbeatResponse = (data) => new Read(data).uint(1) !== 0n;
var pullRequest = (id) => join(node(id));
function pullResponse(data) {
  const read2 = new Read(data);
  const messages = read2.each(2).map(readMessage);
  const trees = read2.each(3).map((one) => readTree(one));
  if (messages.length !== trees.length)
    throw new ProtoError(`${messages.length} messages came with ${trees.length} trees`);
  return messages.map((metadata, k) => ({ metadata, tree: trees[k] }));
}
var aboutRequest = (id, run, object = "") => join(node(id), uint(2, run), text(3, object));
function pullObjectResponse(data) {
  const read2 = new Read(data);
  if (!read2.uint(1)) throw new ProtoError("the server does not know an object of its own message");
  return read2.uint(2) ? read2.bytes(3) : null;
}
function pushRequest(id, metadata, tree) {
  const message2 = join(bytesAlways(1, writeMetadata(metadata)), bytesAlways(2, NOTHING));
  return join(node(id), bytesAlways(2, message2), bytesAlways(3, writeTree(tree)));
}
function pushResponse(data) {
  const read2 = new Read(data);
  return { wanted: read2.each(3).map(utf8), session: read2.text(4) };
}
var pushObjectRequest = (id, run, object, content2, session) => join(node(id), uint(2, run), text(3, object), bytes(4, content2), text(5, session));
var pushObjectResponse = (data) => new Read(data).uint(1) !== 0n;
function runResponse(data) {
  const config = {};
  for (const entry of new Read(new Read(data).bytes(1)).each(4)) {
    const read2 = new Read(entry);
    const value = scalar(new Read(read2.bytes(2)).only());
    if (value !== null) config[read2.text(1)] = value;
  }
  return config;
}
function scalar(field) {
  if (field === void 0) return null;
  const { number, value } = field;
  if (typeof value === "bigint") return number === 13 ? value !== 0n : Number(number === 8 ? unzigzag(value) : value);
  if (number === 1 && value.length === 8) return new DataView(value.buffer).getFloat64(0, true);
  return number === 14 ? utf8(value) : null;
}
function writeMetadata(m) {
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
    m.targetTask === null ? NOTHING : uintAlways(11, m.targetTask)
  );
}
var writeMessage = (metadata) => bytesAlways(1, writeMetadata(metadata));
function readMessage(data) {
  const read2 = new Read(new Read(data).bytes(1));
  return {
    runId: read2.uint(1),
    messageId: read2.text(2),
    source: read2.uint(3),
    target: read2.uint(4),
    replyTo: read2.text(5),
    group: read2.text(6),
    ttl: read2.double(7),
    type: read2.text(8),
    createdAt: read2.double(9),
    sourceTask: read2.has(10) ? read2.uint(10) : null,
    targetTask: read2.has(11) ? read2.uint(11) : null
  };
}
var writeTree = (tree) => join(text(1, tree.id), ...tree.children.map((child) => bytesAlways(2, writeTree(child))));
function readTree(data, depth = 0) {
  if (depth > DEPTH) throw new ProtoError(`objects nested more than ${DEPTH} deep`);
  const read2 = new Read(data);
  return { id: read2.text(1), children: read2.each(2).map((child) => readTree(child, depth + 1)) };
}
function writeRecord(record) {
  return join(
    ...Object.entries(record).map(
      ([key, value]) => bytesAlways(1, join(text(1, key), bytesAlways(2, writeValue(value))))
    )
  );
}
function writeValue(value) {
  if (typeof value === "number") return doubleAlways(1, value);
  if (typeof value === "bigint") return uintAlways(2, value << 1n ^ value >> 63n);
  if (typeof value === "boolean") return uintAlways(4, value ? 1n : 0n);
  return typeof value === "string" ? bytesAlways(5, encoder.encode(value)) : bytesAlways(6, value);
}
function readRecord(data) {
  const record = {};
  for (const item of new Read(data).each(1)) {
    const read2 = new Read(item);
    const field = new Read(read2.bytes(2)).only();
    const value = field === void 0 ? null : readValue(field);
    if (value !== null) record[read2.text(1)] = value;
  }
  return record;
}
function readValue({ number, value }) {
  if (typeof value === "bigint")
    return number === 2 ? unzigzag(value) : number === 3 ? value : number === 4 ? value !== 0n : null;
  if (number === 1 && value.length === 8) return new DataView(value.buffer).getFloat64(0, true);
  return number === 5 ? utf8(value) : number === 6 ? value : null;
}
var unzigzag = (value) => value >> 1n ^ -(value & 1n);

// src/objects.ts
var ObjectError = class extends Error {
};
var LARGE = 4 * 1024 * 1024;
var CHUNK = 5 * 1024 * 1024;
var STYPE = "fedkd.frame";
var MOST = 512 * 1024 * 1024;
var encoder2 = new TextEncoder();
var decoder3 = new TextDecoder();
async function sha256(data) {
  const digest = await crypto.subtle.digest("SHA-256", data);
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
async function pack(type, body, children = []) {
  const unique = [...new Map(children.map((child) => [child.tree.id, child])).values()];
  const head = `${type} ${unique.map((child) => child.tree.id).join(",")} ${body.length}\0`;
  const content2 = join(encoder2.encode(head), body);
  const id = await sha256(content2);
  const parts = new Map(unique.flatMap((child) => [...child.parts]));
  return { tree: { id, children: unique.map((child) => child.tree) }, parts: parts.set(id, content2) };
}
function unpack(content2) {
  const end = content2.subarray(0, MOST).indexOf(0);
  const [type, children, size, ...more] = decoder3.decode(content2.subarray(0, Math.max(end, 0))).split(" ");
  const body = content2.slice(end + 1);
  if (end < 0 || more.length || size === void 0 || Number(size) !== body.length)
    throw new ObjectError("an object whose head does not fit its body");
  return { type, children: children ? children.split(",") : [], body };
}
function spaced(value) {
  if (Array.isArray(value)) return `[${value.map(spaced).join(", ")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  return `{${Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${spaced(one)}`).join(", ")}}`;
}
async function dict(type, members2) {
  const names2 = Object.fromEntries(Object.entries(members2).map(([name, piece]) => [name, piece.tree.id]));
  return pack(type, encoder2.encode(spaced(names2)), Object.values(members2));
}
async function large(frame) {
  const chunks = [];
  for (let at = 0; at < frame.length; at += CHUNK)
    chunks.push(await pack("ArrayChunk", frame.subarray(at, at + CHUNK)));
  const unique = [...new Set(chunks.map((chunk) => chunk.tree.id))];
  const about = {
    dtype: "uint8",
    shape: [frame.length],
    stype: STYPE,
    arraychunk_ids: chunks.map((chunk) => unique.indexOf(chunk.tree.id))
  };
  const array = await pack("Array", encoder2.encode(spaced(about)), chunks);
  return dict("ArrayRecord", { frame: array });
}
async function message(metadata, name, record, frame = null) {
  const split = frame !== null && frame.length > LARGE;
  const whole2 = frame === null || split ? record : { frame, ...record };
  const members2 = { [name]: await pack("ConfigRecord", writeRecord(whole2)) };
  if (frame !== null && split) members2["frame"] = await large(frame);
  return pack("Message", writeMessage({ ...metadata, messageId: "" }), [await dict("RecordDict", members2)]);
}
function names(tree) {
  return [.../* @__PURE__ */ new Set([...tree.children.flatMap(names), tree.id])];
}
function content(tree, part) {
  const records = {};
  const arrays = {};
  const top = of(part, tree.id, "Message");
  for (const [name, id] of members(of(part, top.children[0] ?? "", "RecordDict"))) {
    const member = part(id);
    if (member.type === "ConfigRecord") records[name] = readRecord(member.body);
    else if (member.type === "ArrayRecord") {
      for (const [key, array] of members(member))
        if (key === "frame" || name === "frame") arrays[name] = read(of(part, array, "Array"), part);
    }
  }
  return { records, arrays };
}
function of(part, id, type) {
  const found = part(id);
  if (found.type !== type) throw new ObjectError(`expected an object ${type}, got ${found.type.slice(0, 40)}`);
  return found;
}
function json(body) {
  try {
    return JSON.parse(decoder3.decode(body));
  } catch {
    throw new ObjectError("an object whose body is not JSON");
  }
}
function members(part) {
  const found = json(part.body);
  if (typeof found !== "object" || found === null) throw new ObjectError("an object that names no members");
  return Object.entries(found).filter((entry) => typeof entry[1] === "string");
}
function read(array, part) {
  const about = json(array.body);
  const order = about.arraychunk_ids;
  if (about.stype !== STYPE || !Array.isArray(order)) throw new ObjectError(`an array that is not a ${STYPE}`);
  const chunks = order.map((k) => of(part, array.children[Number(k)] ?? "", "ArrayChunk").body);
  if (chunks.reduce((sum, chunk) => sum + chunk.length, 0) > MOST)
    throw new ObjectError(`a frame of more than ${MOST} bytes`);
  return join(...chunks);
}

// src/identity.ts
var ALGORITHM = { name: "ECDSA", namedCurve: "P-256" };
var encoder3 = new TextEncoder();
var newKey = () => crypto.subtle.generateKey(ALGORITHM, false, ["sign", "verify"]);
var base64 = (data) => btoa(Array.from(data, (byte) => String.fromCharCode(byte)).join(""));
async function pem(key) {
  const body = base64(new Uint8Array(await crypto.subtle.exportKey("spki", key.publicKey)));
  return `-----BEGIN PUBLIC KEY-----
${(body.match(/.{1,64}/g) ?? []).join("\n")}
-----END PUBLIC KEY-----
`;
}
function der(raw) {
  const half2 = raw.length / 2;
  const whole2 = (part) => {
    const start = Math.min(part.findIndex((byte) => byte !== 0) >>> 0, part.length - 1);
    const value = part.subarray(start);
    const padded = value[0] & 128 ? join(Uint8Array.of(0), value) : value;
    return join(Uint8Array.of(2, padded.length), padded);
  };
  const both = join(whole2(raw.subarray(0, half2)), whole2(raw.subarray(half2)));
  return join(Uint8Array.of(48, both.length), both);
}
var iso = (milliseconds) => new Date(milliseconds).toISOString().replace("Z", "+00:00");
async function sign(key, text2) {
  const raw = await crypto.subtle.sign({ name: "ECDSA", hash: "SHA-256" }, key.privateKey, encoder3.encode(text2));
  return base64(der(new Uint8Array(raw)));
}
async function statement(when, code, publicKey, authority) {
  const hashed = (text2) => sha256(encoder3.encode(text2));
  return ["fedkd join", when, await hashed(code), await hashed(publicKey), authority].join("\n");
}
async function joining(key, code, authority, now) {
  const [time, publicKey] = [iso(now), await pem(key)];
  return { key: publicKey, time, proof: await sign(key, await statement(time, code, publicKey, authority)) };
}
async function headers(key, publicKey, now) {
  const timestamp = iso(now);
  return {
    "content-type": "application/protobuf",
    "flwr-public-key": base64(encoder3.encode(publicKey)),
    "flwr-timestamp": timestamp,
    "flwr-signature": await sign(key, timestamp)
  };
}

// src/fleet.ts
var HEARTBEAT = 1800;
var Unreachable = class extends Error {
};
var Refused = class extends Error {
  constructor(status, code, line) {
    super(line);
    this.status = status;
    this.code = code;
  }
  status;
  code;
};
var RUN_IS_OVER = 2007;
var TIMEOUT = 3e4;
var MOST2 = 64 * 1024 * 1024;
var surroundings = {
  fetch: (...given) => fetch(...given),
  now: () => Date.now(),
  wait: (milliseconds) => new Promise((done2) => setTimeout(done2, milliseconds))
};
var backOff = (failures, random = Math.random()) => Math.min(30, 2 ** Math.min(failures, 5)) * (0.5 + random / 2);
var Fleet = class {
  constructor(key, id, instance, base = "", around = surroundings) {
    this.key = key;
    this.id = id;
    this.instance = instance;
    this.base = base;
    this.around = around;
  }
  key;
  id;
  instance;
  base;
  around;
  publicKey = "";
  offset = 0;
  sent = 0;
  received = 0;
  /** Now on the server's clock, in seconds. */
  now() {
    return (this.around.now() + this.offset) / 1e3;
  }
  /** Say that we are there; the first time, or after an hour away, ask to be counted in. */
  async appear() {
    if (heartbeatResponse(await this.call("send-node-heartbeat", heartbeatRequest(this.id, HEARTBEAT)))) return;
    const given = activateResponse(
      await this.call("activate-node", activateRequest(new TextEncoder().encode(await this.pem()), HEARTBEAT))
    );
    if (given !== this.id)
      throw new Refused(409, null, `the server knows this key as node ${given}, not as ${this.id}`);
  }
  async pull() {
    return pullResponse(await this.call("pull-messages", pullRequest(this.id)))[0] ?? null;
  }
  /** The content of a message, each object checked against its name. */
  async objects(run, tree) {
    const parts = /* @__PURE__ */ new Map();
    let total = 0;
    for (const id of names(tree)) {
      const found = await this.object(run, id);
      total += found.length;
      if (total > MOST2) throw new Refused(413, null, `a question of more than ${MOST2} bytes`);
      if (await sha256(found) !== id) throw new Refused(502, null, "an object that is not what its name says");
      parts.set(id, unpack(found));
    }
    return content(tree, (id) => {
      const part = parts.get(id);
      if (!part) throw new Refused(502, null, "a message that lacks one of its objects");
      return part;
    });
  }
  async object(run, id) {
    for (let trial = 0; trial < 20; trial++) {
      const found = pullObjectResponse(await this.call("pull-object", aboutRequest(this.id, run, id)));
      if (found) return found;
      await this.around.wait(500);
    }
    throw new Unreachable("the server has not received its own question yet");
  }
  /** Tell the server that it may forget the objects of its message. */
  async confirm(run, messageId) {
    await this.call("confirm-message-received", aboutRequest(this.id, run, messageId));
  }
  async config(run) {
    return runResponse(await this.call("get-run", aboutRequest(this.id, run)));
  }
  /** Send an answer. The same answer again is no other: the server takes what it lacks of it. */
  async push(metadata, piece) {
    const { wanted, session } = pushResponse(
      await this.call(
        "push-messages",
        pushRequest(this.id, { ...metadata, messageId: piece.tree.id }, piece.tree)
      )
    );
    for (const id of wanted) {
      const part = piece.parts.get(id);
      if (!part) throw new Refused(502, null, "the server asks for an object that is not part of the answer");
      const stored = pushObjectResponse(
        await this.call("push-object", pushObjectRequest(this.id, metadata.runId, id, part, session))
      );
      if (!stored) throw new Unreachable("the server did not keep a part of the answer");
    }
  }
  async pem() {
    return this.publicKey ||= await pem(this.key);
  }
  /** One signed request. A clock that is off is set by the server's and the request repeated, once. */
  async call(route, body, again = true) {
    const signed = await headers(this.key, await this.pem(), this.around.now() + this.offset);
    let response, data;
    try {
      response = await this.around.fetch(`${this.base}/v1/fleet/${route}`, {
        method: "POST",
        body,
        headers: { ...signed, "fedkd-instance": this.instance },
        cache: "no-store",
        credentials: "omit",
        redirect: "error",
        signal: AbortSignal.timeout(TIMEOUT)
      });
      data = new Uint8Array(await response.arrayBuffer());
    } catch (error) {
      throw new Unreachable(`no answer to ${route}: ${error.message}`);
    }
    this.sent += body.length;
    this.received += data.length;
    const date = Date.parse(response.headers.get("date") ?? "");
    const moved = Number.isNaN(date) ? 0 : date + 500 - this.around.now() - this.offset;
    if (Math.abs(moved) > 2e3) this.offset += moved;
    if (response.ok) return data;
    if (response.status === 401 && again && Math.abs(moved) > 2e3) return this.call(route, body, false);
    if ([429, 500, 502, 503, 504].includes(response.status))
      throw new Unreachable(`the server is busy or restarting (${response.status})`);
    const { code, line } = reason(data);
    throw new Refused(response.status, code, line || `${route}: ${response.status}`);
  }
};
function reason(data) {
  try {
    const said = JSON.parse(new TextDecoder().decode(data));
    const line = said["error"] ?? said["detail"] ?? said["message"] ?? "";
    return { code: typeof said["code"] === "number" ? said["code"] : null, line: String(line).slice(0, 300) };
  } catch {
    return { code: null, line: "" };
  }
}
async function register(invitation, base = "", around = surroundings, offset = 0) {
  const { code, key, name, authority } = invitation;
  let response, data;
  try {
    response = await around.fetch(`${base}/fedkd/join`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      signal: AbortSignal.timeout(TIMEOUT),
      body: JSON.stringify({ code, name, ...await joining(key, code, authority, around.now() + offset) })
    });
    data = new Uint8Array(await response.arrayBuffer());
  } catch (error) {
    throw new Unreachable(`no answer: ${error.message}`);
  }
  const moved = Date.parse(response.headers.get("date") ?? "") + 500 - around.now();
  if (response.status === 403 && !offset && Math.abs(moved) > 2e3) return register(invitation, base, around, moved);
  if (!response.ok)
    throw new Refused(
      response.status,
      null,
      reason(data).line || `the server refused to let this phone in (${response.status})`
    );
  const id = JSON.parse(new TextDecoder().decode(data))["node_id"];
  if (typeof id !== "string" || !/^\d{1,20}$/.test(id))
    throw new Refused(502, null, "the server gave this phone no number");
  return id;
}

// src/store.ts
var DATABASE = "fedkd";
var TABLE = "values";
var done = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error ?? new Error("the browser's storage failed"));
});
var written = (transaction) => new Promise((resolve, reject) => {
  transaction.oncomplete = () => resolve();
  transaction.onabort = () => reject(transaction.error ?? new Error("the browser's storage is full or was closed"));
});
async function openStore(name = DATABASE) {
  const request = indexedDB.open(name, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(TABLE);
  const database = await done(request);
  database.onversionchange = () => database.close();
  const table = () => database.transaction(TABLE).objectStore(TABLE);
  const change = (how) => {
    const transaction = database.transaction(TABLE, "readwrite", { durability: "strict" });
    how(transaction.objectStore(TABLE));
    return written(transaction);
  };
  return {
    get: async (key) => await done(table().get(key)),
    put: (values) => change((all) => {
      for (const [key, value] of Object.entries(values)) value === void 0 ? all.delete(key) : all.put(value, key);
    }),
    names: async (prefix) => (await done(table().getAllKeys(IDBKeyRange.bound(prefix, `${prefix}￿`)))).map(String),
    clear: () => change((all) => void all.clear())
  };
}
function memoryStore() {
  const values = /* @__PURE__ */ new Map();
  return {
    get: async (key) => structuredClone(values.get(key)),
    put: async (given) => {
      for (const [key, value] of Object.entries(given))
        value === void 0 ? values.delete(key) : values.set(key, structuredClone(value));
    },
    names: async (prefix) => [...values.keys()].filter((key) => key.startsWith(prefix)).sort(),
    clear: async () => values.clear()
  };
}

// src/node.ts
var QUERY = "query.release";
var SALT = 16;
var SOONEST = 700;
var LATEST = 5e3;
var ALIVE = 14e5;
var OVER = 3e3;
var Node = class {
  constructor(means, now = Date.now) {
    this.means = means;
    this.now = now;
  }
  means;
  now;
  alive = -Infinity;
  looked = 0;
  ended = false;
  stop() {
    this.ended = true;
  }
  /** Work until stopped, until the run is over, or until nothing more can be done. */
  async live() {
    const { tell, wait } = this.means;
    let failures = 0, idle = 0;
    while (!this.ended) {
      try {
        const turn = await this.turn();
        if (turn === "over") return tell({ kind: "over" });
        failures = 0;
        idle = turn === "worked" ? 0 : idle + 1;
        if (idle === 1) tell({ kind: "waiting" });
        if (idle) await wait(Math.min(LATEST, SOONEST * 1.3 ** idle));
      } catch (error) {
        if (this.ended) return;
        if (!(error instanceof Unreachable)) return tell(final(error));
        if (failures > 2 && await this.means.store.get("complete")) return tell({ kind: "over" });
        tell({ kind: "unreachable", line: error.message });
        this.alive = -Infinity;
        await wait(1e3 * backOff(failures++));
      }
    }
  }
  /** One step: send what is ready, else answer what was asked, else ask. */
  async turn() {
    const { fleet, store, ready } = this.means;
    const outbox = await store.get("outbox");
    if (!outbox) await ready();
    if (this.ended) return "worked";
    if (this.now() - this.alive > ALIVE) {
      await fleet.appear();
      this.alive = this.now();
    }
    if (outbox) return this.send(outbox);
    const inbox = await store.get("inbox");
    if (!inbox) return this.take();
    if (fleet.now() > inbox.metadata.createdAt + inbox.metadata.ttl) {
      await store.put({ inbox: void 0 });
      return "worked";
    }
    return inbox.question ? this.answer(inbox, inbox.question) : this.open(inbox);
  }
  /** Ask for a question. The server gives it once, so it is kept before anything else is done. */
  async take() {
    const { fleet, store } = this.means;
    const pulled = await fleet.pull();
    if (pulled) {
      await store.put({ inbox: pulled, run: pulled.metadata.runId });
      return "worked";
    }
    const run = await store.get("run");
    const often = await store.get("complete") ? 1 : 5;
    if (run === void 0 || this.now() - this.looked < OVER * often) return "idle";
    this.looked = this.now();
    return await this.configOf(run) === null ? "over" : "idle";
  }
  /** Fetch what a question consists of. */
  async open(inbox) {
    const { fleet, store } = this.means, { metadata, tree } = inbox;
    let question;
    try {
      const { records, arrays } = await fleet.objects(metadata.runId, tree);
      const record = records["query"], frame = record?.["frame"] ?? arrays["frame"], known = record?.["acknowledged"];
      question = metadata.type === QUERY && frame instanceof Uint8Array ? { frame, acknowledged: typeof known === "bigint" ? Number(known) : 0, refusal: null } : {
        frame: null,
        acknowledged: 0,
        refusal: `this phone answers ${QUERY} with a frame, and nothing else; got ${metadata.type.slice(0, 60)}`
      };
    } catch (error) {
      if (isOver(error)) return this.drop();
      if (!(error instanceof ObjectError || error instanceof ProtoError)) throw error;
      question = { frame: null, acknowledged: 0, refusal: `a question that cannot be read: ${error.message}` };
    }
    await store.put({ inbox: { ...inbox, question } });
    await fleet.confirm(metadata.runId, metadata.messageId).catch((error) => {
      if (!isOver(error)) throw error;
    });
    return "worked";
  }
  async answer(inbox, question) {
    const { fleet, store, tell } = this.means, began = this.now(), before = fleet.sent;
    const config = await this.configOf(inbox.metadata.runId);
    if (config === null) return this.drop();
    let round = 0, result;
    const { frame } = question;
    if (frame === null) result = { refusal: question.refusal ?? "a question without a frame" };
    else {
      round = roundOf(this.means, frame);
      tell({ kind: "training", round });
      const changed = differs(this.means.agreed, config);
      const job = {
        frame,
        acknowledged: question.acknowledged,
        config,
        run: String(config["run-name"] || inbox.metadata.runId),
        // the same when the run goes on after a crash
        key: String(fleet.id)
      };
      result = changed ? { refusal: `the run's ${changed} is not what this phone's owner agreed to` } : await this.means.answer(job);
    }
    if (this.ended) return "worked";
    const metadata = reply(inbox.metadata, fleet.now(), fleet.id);
    const piece = "frame" in result ? await message(metadata, "release", { salt: crypto.getRandomValues(new Uint8Array(SALT)) }, result.frame) : await message(metadata, "refusal", { client: String(fleet.id), error: result.refusal.slice(0, 500) });
    const sent = {
      round,
      run: String(inbox.metadata.runId),
      at: this.now(),
      seconds: (this.now() - began) / 1e3,
      frame: "frame" in result ? result.frame.length : 0,
      bytes: fleet.sent - before,
      digest: "frame" in result ? (await this.means.digest(result.frame)).slice(0, 12) : "",
      refusal: "frame" in result ? null : result.refusal,
      delivered: false
    };
    const outbox = { metadata, tree: piece.tree, parts: piece.parts, sent };
    await store.put({ inbox: void 0, outbox });
    return "worked";
  }
  async send(outbox) {
    const { fleet, store, tell } = this.means, before = fleet.sent, { metadata, sent } = outbox;
    tell({ kind: "sending", round: sent.round });
    const piece = { tree: outbox.tree, parts: outbox.parts };
    let delivered = true;
    if (fleet.now() > metadata.createdAt + metadata.ttl) delivered = false;
    else
      try {
        await fleet.push(metadata, piece);
      } catch (error) {
        if (!isOver(error)) throw error;
        delivered = false;
      }
    const done2 = { ...sent, bytes: sent.bytes + fleet.sent - before, delivered };
    const last = delivered && sent.refusal === null && sent.round >= Number(this.means.agreed["rounds"]);
    await store.put({
      outbox: void 0,
      ...last ? { complete: true } : {},
      [`sent.${String(sent.at).padStart(15, "0")}`]: done2
    });
    tell({ kind: "sent", sent: done2 });
    return delivered ? "worked" : "over";
  }
  /** The settings of a run; null once it is over. They do not change while it runs. */
  async configOf(run) {
    try {
      return await this.means.fleet.config(run);
    } catch (error) {
      if (isOver(error)) return null;
      throw error;
    }
  }
  async drop() {
    await this.means.store.put({ inbox: void 0 });
    return "over";
  }
};
var isOver = (error) => error instanceof Refused && error.code === RUN_IS_OVER;
function roundOf({ roundOf: read2 }, frame) {
  try {
    return read2(frame);
  } catch {
    return 0;
  }
}
function final(error) {
  const line = error instanceof Error ? error.message : String(error);
  return error instanceof Refused && [401, 403, 409, 412].includes(error.status) ? { kind: "stranger", line } : { kind: "broken", line };
}
function reply(to, now, self) {
  return {
    runId: to.runId,
    messageId: "",
    source: self,
    target: to.source,
    replyTo: to.messageId,
    group: to.group,
    ttl: to.createdAt + to.ttl - now,
    type: to.type,
    createdAt: now,
    sourceTask: to.targetTask,
    targetTask: to.sourceTask
  };
}

// src/transfer.ts
var TransferError = class extends Error {
};
var MOST3 = 256 * 1024 * 1024;
var fingerprint = (shape, x) => sha256(
  join(
    new TextEncoder().encode(`<f4 (${shape.join(", ")}${shape.length === 1 ? "," : ""})`),
    new Uint8Array(x.buffer, x.byteOffset, x.byteLength)
  )
);
async function download(path, progress, expected) {
  let response;
  const chunks = [];
  let size = 0;
  try {
    response = await fetch(path, { credentials: "omit", redirect: "error" });
    if (!response.ok) throw new TransferError(`${path} is not there (${response.status})`);
    const reader = response.body.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      chunks.push(part.value);
      size += part.value.length;
      if (size > MOST3) throw new TransferError(`more than ${MOST3 >> 20} MiB came for ${path}`);
      progress(Math.min(1, size / expected));
    }
  } catch (error) {
    if (error instanceof TransferError) throw error;
    throw new Unreachable(`the download broke off: ${error.message}`);
  }
  return join(...chunks);
}
async function fetchTransfer(about, progress = () => {
}) {
  const shape = [about.rows, ...about.shape];
  const size = shape.reduce((product, n) => product * n, 4);
  const file = await download(`/fedkd/transfer/${about.fingerprint}`, progress, size);
  const x = safetensors(file).get("x");
  if (!x || !(x.data instanceof Float32Array) || x.shape.join() !== shape.join())
    throw new TransferError(`the transfer set is ${x?.shape.join(" x ") ?? "empty"}, expected ${shape.join(" x ")}`);
  const found = await fingerprint(shape, x.data);
  if (found !== about.fingerprint)
    throw new TransferError(
      `the transfer set was changed on its way: it is ${found.slice(0, 16)}, expected ` + about.fingerprint.slice(0, 16)
    );
  return { fingerprint: found, x: x.data };
}
async function fetchShard(about, k) {
  const file = await download(`/fedkd/shard/${k}`, () => {
  }, 1 << 20);
  return examples(safetensors(file), about, "shard", String(k));
}
async function readFile(file, about) {
  if (file.size > MOST3) throw new FileError(`a file of at most ${MOST3 >> 20} MiB, please`);
  const bytes2 = new Uint8Array(await file.arrayBuffer());
  const zip = bytes2[0] === 80 && bytes2[1] === 75;
  return examples(zip ? await npz(bytes2) : safetensors(bytes2), about, "file", file.name);
}
function examples(file, about, kind, title) {
  const x = file.get("x"), y = file.get("y");
  if (!x || !y)
    throw new FileError(`the file needs two arrays, x and y; it has ${[...file.keys()].join(", ") || "none"}`);
  const flat = about.shape.join(" x ");
  const gray = about.shape.length === 3 && about.shape[0] === 1 && x.shape.length === 3;
  const shape = gray ? [1, ...x.shape.slice(1)] : x.shape.slice(1);
  if (shape.join() !== about.shape.join())
    throw new FileError(`rows of x must be ${flat}, got ${x.shape.slice(1).join(" x ") || "single numbers"}`);
  if (y.shape.reduce((product, n) => product * n, 1) !== x.shape[0])
    throw new FileError(`x has ${x.shape[0]} rows, y has ${y.data.length} labels`);
  const labels = Int32Array.from(y.data);
  const wrong = labels.find((label, k) => label !== y.data[k] || label < 0 || label >= about.classes);
  if (wrong !== void 0)
    throw new FileError(`labels must be whole numbers from 0 to ${about.classes - 1}, got ${wrong}`);
  return { kind, title, shape: about.shape, x: inputs(x), y: labels };
}
function inputs(x) {
  if (x.data instanceof Uint8Array) return Float32Array.from(x.data, (value) => Math.fround(value / 255));
  const values = x.data instanceof Float32Array ? x.data : Float32Array.from(x.data);
  if (!values.every(Number.isFinite)) throw new FileError("x must be finite numbers");
  return values;
}

// src/photos.ts
var canPhotograph = (shape) => shape.length === 3 && (shape[0] === 1 || shape[0] === 3) && shape[1] >= 2 && shape[2] >= 2;
function middle(w, h, width, height) {
  const scale = Math.min(w / width, h / height), [a, b] = [width * scale, height * scale];
  return { x: (w - a) / 2, y: (h - b) / 2, w: a, h: b };
}
function pixels(rgba2, channels) {
  const n = rgba2.length / 4, out = new Float32Array(channels * n);
  for (let k = 0; k < n; k++) {
    const [r, g, b] = [rgba2[4 * k], rgba2[4 * k + 1], rgba2[4 * k + 2]];
    if (channels === 1) out[k] = (0.299 * r + 0.587 * g + 0.114 * b) / 255;
    else [out[k], out[n + k], out[2 * n + k]] = [r / 255, g / 255, b / 255];
  }
  return out;
}
var inverted = (x) => Float32Array.from(x, (value) => 1 - value);
var brightness = (x) => x.reduce((sum, value) => sum + value, 0) / Math.max(1, x.length);
var wantsNegative = (photo, samples) => Math.abs(brightness(photo) - brightness(samples)) > Math.abs(1 - brightness(photo) - brightness(samples)) + 0.1;
function shrink(x, channels, from, to) {
  const [h, w] = from, [height, width] = to, out = new Float32Array(channels * height * width);
  const rows = shares(h, height), columns = shares(w, width);
  for (let c = 0; c < channels; c++)
    for (let i = 0; i < height; i++)
      for (let j = 0; j < width; j++) {
        let sum = 0;
        for (const [y, a] of rows[i]) for (const [k, b] of columns[j]) sum += a * b * x[(c * h + y) * w + k];
        out[(c * height + i) * width + j] = sum;
      }
  return out;
}
function shares(from, to) {
  return Array.from({ length: to }, (_, i) => {
    const start = i * from / to, end = (i + 1) * from / to, some = [];
    for (let k = Math.floor(start); k < end - 1e-9; k++)
      some.push([k, (Math.min(end, k + 1) - Math.max(start, k)) / (end - start)]);
    return some;
  });
}
var SIDE = 1024;
async function readPhoto(file, shape) {
  const [channels, height, width] = shape;
  const picture = await createImageBitmap(file, { imageOrientation: "from-image" });
  const part = middle(picture.width, picture.height, width, height), scale = Math.min(1, SIDE / Math.max(part.w, part.h));
  const w = Math.max(width, Math.round(part.w * scale)), h = Math.max(height, Math.round(part.h * scale));
  const pen = new OffscreenCanvas(w, h).getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture, part.x, part.y, part.w, part.h, 0, 0, w, h);
  picture.close();
  return shrink(pixels(pen.getImageData(0, 0, w, h).data, channels), channels, [h, w], [height, width]);
}
function rgba(x, shape) {
  if (shape.length !== 3 || shape[0] !== 1 && shape[0] !== 3) return null;
  const n = shape[1] * shape[2], color = shape[0] === 3, out = new Uint8ClampedArray(4 * n).fill(255);
  for (let k = 0; k < n; k++) for (let c = 0; c < 3; c++) out[4 * k + c] = 255 * x[(color ? c * n : 0) + k];
  return out;
}
function asData(photos, shape, title) {
  const size = shape.reduce((product, n) => product * n, 1), x = new Float32Array(photos.length * size);
  photos.forEach((photo, k) => x.set(photo.pixels, k * size));
  return { kind: "photos", title, shape, x, y: Int32Array.from(photos, (photo) => photo.label) };
}

// src/screens.ts
var START = {
  screen: "opening",
  about: null,
  trouble: null,
  invited: false,
  member: false,
  data: null,
  busy: false,
  doing: "connecting",
  round: 0,
  progress: 0,
  part: "",
  paused: false,
  hidden: false,
  log: [],
  why: null
};
var LEAST = 2;
var examplesOf = (data) => data?.counts.reduce((sum, n) => sum + n, 0) ?? 0;
var canStart = (state) => state.screen === "data" && !state.busy && examplesOf(state.data) >= LEAST && (state.member || state.invited);
var mayWork = (state) => state.screen === "joined" && !state.paused && !state.hidden;
function next(state, event) {
  switch (event.kind) {
    case "opened":
      return opened(state, event);
    case "trouble":
      return { ...state, screen: "trouble", trouble: event.line, busy: false };
    case "notice":
      return { ...state, trouble: event.line, busy: false };
    case "agreed":
      return state.screen === "welcome" ? { ...state, screen: "data", trouble: null } : state;
    case "back":
      return state.screen === "data" ? { ...state, screen: "welcome", trouble: null } : state;
    case "busy":
      return { ...state, busy: event.is };
    case "chosen":
      return { ...state, data: event.data, trouble: null, busy: false };
    case "joined":
      return {
        ...state,
        screen: "joined",
        member: true,
        busy: false,
        trouble: null,
        doing: "connecting",
        paused: false,
        why: null
      };
    case "doing":
      return working(state, event);
    case "progress":
      return state.doing === "training" ? { ...state, progress: Math.min(1, Math.max(0, event.share)), part: event.part } : state;
    case "sent":
      return { ...state, log: [...state.log, event.sent], trouble: null, progress: 0, part: "" };
    case "visible":
      return { ...state, hidden: !event.is };
    case "pause":
      return state.screen === "joined" ? { ...state, paused: true, progress: 0 } : state;
    case "resume":
      return state.screen === "joined" ? { ...state, paused: false, doing: "connecting", trouble: null } : state;
    case "ended":
      return { ...state, screen: "done", why: event.why, paused: false, progress: 0, part: "", trouble: null };
    case "again":
      return state.screen === "done" ? { ...state, screen: "welcome", why: null } : state;
    case "deleted":
      return { ...START, screen: "deleted", about: state.about };
  }
}
function opened(state, event) {
  const { about, invited, member, agreed, data, log, why } = event;
  const fits = data !== null && data.counts.length === about.classes ? data : null;
  const known = { ...state, about, invited, member, data: fits, log, why, trouble: null };
  if (member && agreed && why !== null) return { ...known, screen: "done" };
  if (member && agreed && examplesOf(fits) >= LEAST) return { ...known, screen: "joined", doing: "connecting" };
  return { ...known, screen: "welcome", why: null };
}
function working(state, event) {
  if (state.screen !== "joined") return state;
  const fresh = event.doing === "training" ? { progress: 0, part: "" } : {};
  return { ...state, ...fresh, doing: event.doing, round: event.round ?? state.round, trouble: event.line ?? null };
}
export {
  AboutError,
  FileError,
  Fleet,
  HEARTBEAT,
  LARGE,
  LEAST,
  Node,
  ObjectError,
  ProtoError,
  RUN_IS_OVER,
  Refused,
  START,
  TransferError,
  Unreachable,
  WIRE,
  aboutRequest,
  activateRequest,
  activateResponse,
  asData,
  backOff,
  base64,
  brightness,
  canPhotograph,
  canStart,
  content,
  der,
  differs,
  examples,
  examplesOf,
  fetchShard,
  fetchTransfer,
  fingerprint,
  headers,
  heartbeatRequest,
  heartbeatResponse,
  inverted,
  join,
  joining,
  mayWork,
  memoryStore,
  message,
  middle,
  names,
  newKey,
  next,
  npy,
  npz,
  openStore,
  pack,
  pem,
  pixels,
  pullObjectResponse,
  pullRequest,
  pullResponse,
  pushObjectRequest,
  pushObjectResponse,
  pushRequest,
  pushResponse,
  readAbout,
  readFile,
  readMessage,
  readPhoto,
  readRecord,
  readTree,
  register,
  reply,
  rgba,
  runResponse,
  safetensors,
  sameRun,
  sha256,
  shrink,
  statement,
  surroundings,
  unpack,
  wantsNegative,
  writeMessage,
  writeMetadata,
  writeRecord,
  writeTree
};
