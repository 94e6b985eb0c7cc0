// src/errors.ts
var Refusal = class extends Error {
  name = "Refusal";
};
var Cancelled = class extends Error {
  name = "Cancelled";
};

// src/accountant.ts
var span = (from, to, step) => Array.from({ length: Math.ceil((to - from) / step) }, (_, i) => from + i * step);
var ORDERS = [
  1.25,
  ...span(13, 110, 1).map((a) => a / 10),
  ...span(11, 64, 1),
  ...span(64, 520, 8)
];
var LOG_FACTORIAL = span(0, 513, 1).reduce(
  (sums, n) => [...sums, (sums[n - 1] ?? 0) + Math.log(n || 1)],
  []
);
function rdp(event) {
  if (event.kind === "no_op") return new Float64Array(ORDERS.length);
  if (event.kind === "non_private" || !sound(event)) return new Float64Array(ORDERS.length).fill(Infinity);
  const { rate, noise, count: count2 } = event;
  return Float64Array.from(ORDERS, (alpha) => count2 * poisson(rate, noise, alpha));
}
function total(events) {
  const sum = new Float64Array(ORDERS.length);
  for (const event of events) rdp(event).forEach((cost, a) => sum[a] += cost);
  return sum;
}
function epsilonOf(cost, delta) {
  const least = Math.min(...cost);
  if (least === 0 || delta >= Math.sqrt(-Math.expm1(-least))) return 0;
  return Math.max(0, Math.min(...cost.map((value, a) => value + surcharge(delta, a))));
}
function fits(epsilon, delta, before, next) {
  if (next.kind === "no_op") return true;
  const events = [...before, next].filter((event) => event.kind !== "no_op");
  if (events.some((event) => event.kind === "non_private")) return false;
  const first = rdp(events[0]);
  let [order, most] = [0, -Infinity];
  first.forEach((cost, a) => {
    const room = epsilon - surcharge(delta, a);
    const times2 = room > 0 ? room / cost : -Infinity;
    if (times2 > most) [order, most] = [a, times2];
  });
  return total(events)[order] <= epsilon - surcharge(delta, order) + 1e-9 * epsilon;
}
function calibrated(epsilon, delta, rate, count2) {
  const enough = (noise) => {
    return epsilonOf(rdp({ kind: "sampled_gaussian", rate, noise, count: count2 }), delta) <= epsilon;
  };
  let [low, high] = [0.01, 1];
  while (!enough(high)) {
    [low, high] = [high, 4 * high];
    if (high > 1e7) throw new Refusal(`no noise makes ${count2} steps private enough for epsilon = ${epsilon}`);
  }
  while (high / low > 1 + 1e-5) {
    const middle = Math.sqrt(low * high);
    if (enough(middle)) high = middle;
    else low = middle;
  }
  return high * 1.0002;
}
function sound({ rate, noise, count: count2 }) {
  return rate >= 0 && rate <= 1 && noise >= 0 && noise < Infinity && Number.isInteger(count2) && count2 >= 1;
}
function poisson(q, z, alpha) {
  if (q === 0) return 0;
  const plain = z > 0 ? alpha / (2 * z * z) : Infinity;
  const whole = Number.isInteger(alpha);
  if (q === 1 || z < 0.02 || !whole && z < 0.2) return plain;
  const [out, into] = [Math.log1p(-q), Math.log(q)];
  let sum = -Infinity;
  if (whole) {
    for (let k = 0; k <= alpha; k++) {
      const choose = LOG_FACTORIAL[alpha] - LOG_FACTORIAL[k] - LOG_FACTORIAL[alpha - k];
      sum = logAdd(sum, choose + (alpha - k) * out + k * into + (k * k - k) / (2 * z * z));
    }
  } else {
    const step = Math.min(z, z * z) / 8;
    let mass = 0;
    const top = alpha * alpha / (2 * z * z);
    for (let x = -14 * z; x < alpha + 14 * z + step; x += step) {
      const ratio = alpha * logAdd(out, into + (2 * x - 1) / (2 * z * z));
      mass += Math.exp(ratio - x * x / (2 * z * z) - top);
    }
    if (!(mass > 0)) return plain;
    sum = Math.log(mass * step / (z * Math.sqrt(2 * Math.PI))) + top;
  }
  return Math.min(Math.max(0, sum) / (alpha - 1), plain);
}
function surcharge(delta, a) {
  const alpha = ORDERS[a];
  return Math.log1p(-1 / alpha) - (Math.log(delta) + Math.log(alpha)) / (alpha - 1);
}
function logAdd(a, b) {
  const most = Math.max(a, b);
  return most === -Infinity ? most : most + Math.log1p(Math.exp(Math.min(a, b) - most));
}

// src/frames.ts
var VERSION = 2;
var QUERY = 1;
var RELEASE = 2;
var NONE = 255;
var FLAGS = { delta: 1, range_code: 2, zstd: 4, taught: 8 };
var MAX_ROWS = 1e7;
var MAX_CLASSES = 65535;
var MAX_CELLS = 2 ** 30;
var FIXED = 18;
var Writer = class {
  bytes = [];
  byte(value) {
    this.bytes.push(value & 255);
    return this;
  }
  raw(values) {
    for (let i = 0; i < values.length; i++) this.bytes.push(values[i]);
    return this;
  }
  /** Seven bits a byte, the lowest first. */
  varint(value) {
    let left = BigInt(value);
    for (; left > 127n; left >>= 7n) this.bytes.push(Number(left & 127n) | 128);
    return this.byte(Number(left));
  }
  float32(value) {
    return this.raw(new Uint8Array(new Float32Array([value]).buffer));
  }
  float64(value) {
    return this.raw(new Uint8Array(new Float64Array([value]).buffer));
  }
  done() {
    return Uint8Array.from(this.bytes);
  }
};
var Reader = class {
  constructor(body, at = 0) {
    this.body = body;
    this.at = at;
  }
  body;
  at;
  take(count2) {
    const left = this.body.length - this.at;
    if (count2 > left) throw new Refusal(`frame ends early: ${count2} bytes expected, ${left} left`);
    this.at += count2;
    return this.body.subarray(this.at - count2, this.at);
  }
  byte() {
    return this.take(1)[0];
  }
  /** The next number of at most 64 bits, written as short as can be. */
  varint64() {
    let value = 0n;
    for (let place = 0; place < 10; place++) {
      const byte = this.byte();
      value |= BigInt(byte & 127) << BigInt(7 * place);
      if (byte < 128) {
        if (place > 0 && byte === 0 || value >= 1n << 64n) break;
        return value;
      }
    }
    throw new Refusal("a number in the frame is too long");
  }
  varint() {
    const value = this.varint64();
    return value > Number.MAX_SAFE_INTEGER ? Number.MAX_SAFE_INTEGER : Number(value);
  }
  end() {
    const left = this.body.length - this.at;
    if (left) throw new Refusal(`frame has ${left} bytes too many`);
  }
};
function write(header, body) {
  check(header);
  const start = new Writer().raw([70, 75, 68, VERSION, header.kind | header.flags << 4, header.encoding]);
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
function read(frame, kind) {
  if (frame.length < FIXED) {
    throw new Refusal(`frame of ${frame.length} bytes is shorter than its header of ${FIXED} and more`);
  }
  if (frame[0] !== 70 || frame[1] !== 75 || frame[2] !== 68) throw new Refusal("not a fedkd frame");
  if (frame[3] !== VERSION) {
    throw new Refusal(
      `frame has version ${frame[3]}, this page reads ${VERSION}: reload it, both sides need the same fedkd`
    );
  }
  const reader = new Reader(frame, FIXED);
  const flags = frame[4] >> 4;
  const [classes, rows, round] = [reader.varint(), reader.varint(), reader.varint()];
  const client = reader.varint64();
  const base = flags & FLAGS.delta ? reader.varint() : 0;
  const fingerprint = frame.slice(6, 14);
  const header = {
    kind: frame[4] & 15,
    encoding: frame[5],
    classes,
    rows,
    round,
    client,
    fingerprint,
    flags,
    base
  };
  check(header);
  if (header.kind !== kind) throw new Refusal(`frame is of kind ${header.kind}, expected ${kind}`);
  const sum = crc32(frame.subarray(FIXED), crc32(frame.subarray(0, FIXED - 4)));
  if (sum !== new DataView(frame.buffer, frame.byteOffset).getUint32(FIXED - 4, true)) {
    throw new Refusal("frame is damaged: its checksum does not match");
  }
  return [header, reader];
}
function check(header) {
  const { classes, rows, round, base } = header;
  const sound2 = classes >= 1 && classes <= MAX_CLASSES && rows >= 0 && rows <= MAX_ROWS && rows * classes <= MAX_CELLS && round >= 1 && round < 2 ** 32 && base > 0 === (header.flags & FLAGS.delta) > 0 && base < round && header.client >= 0n && header.client < 1n << 64n;
  if (!sound2) throw new Refusal(`impossible frame: ${classes} classes, ${rows} rows, round ${round}`);
}
var TABLE = Int32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let i = 0; i < 8; i++) c = c & 1 ? 3988292384 ^ c >>> 1 : c >>> 1;
  return c;
});
function crc32(bytes, before = 0) {
  let c = ~before;
  for (let i = 0; i < bytes.length; i++) c = TABLE[(c ^ bytes[i]) & 255] ^ c >>> 8;
  return ~c >>> 0;
}
function packBits(values, bits) {
  const out = new Uint8Array(Math.ceil(values.length * bits / 8));
  let at = 0;
  for (let i = 0; i < values.length; i++) {
    for (let place = bits - 1; place >= 0; place--, at++) {
      if (values[i] >>> place & 1) out[at >> 3] |= 128 >> (at & 7);
    }
  }
  return out;
}
function unpackBits(reader, count2, bits) {
  const raw = reader.take(Math.ceil(count2 * bits / 8));
  const values = new Uint32Array(count2);
  for (let i = 0, at = 0; i < count2; i++) {
    let value = 0;
    for (let place = 0; place < bits; place++, at++) value = value << 1 | raw[at >> 3] >> 7 - (at & 7) & 1;
    values[i] = value;
  }
  return values;
}
function unpackRows(reader, size) {
  const form = reader.byte();
  if (form === 0) return Int32Array.from({ length: size }, (_, i) => i);
  if (form === 1) return ones(reader.take(Math.ceil(size / 8)), size);
  if (form !== 2) throw new Refusal(`unknown form of rows ${form}`);
  const count2 = reader.varint();
  if (count2 === 0) return new Int32Array(0);
  if (count2 >= size) throw new Refusal(`${count2} rows were named one by one, of ${size}`);
  const low = Math.max(0, 31 - Math.clz32(Math.floor(size / count2)));
  const lows = low ? unpackBits(reader, count2, low) : new Uint32Array(count2);
  const length = count2 + (size - 1 >> low) + 1;
  const places = ones(reader.take(Math.ceil(length / 8)), length);
  const rows = places.map((place, i) => place - i << low | (lows[i] ?? 0));
  const ordered = rows.every((row, i) => row < size && (i === 0 || row > rows[i - 1]));
  if (rows.length !== count2 || !ordered) throw new Refusal(`rows must be ${count2} different ones of ${size}, in order`);
  return rows;
}
function ones(raw, size) {
  const found = [];
  for (let i = 0; i < size; i++) if (raw[i >> 3] >> 7 - (i & 7) & 1) found.push(i);
  return Int32Array.from(found);
}

// src/random.ts
var system = {
  private: true,
  uniforms(count2) {
    const words = new Uint32Array(2 * count2);
    for (let at = 0; at < words.length; at += 16384) crypto.getRandomValues(words.subarray(at, at + 16384));
    const found = new Float64Array(count2);
    for (let i = 0; i < count2; i++) found[i] = ((words[2 * i] >>> 5) * 67108864 + (words[2 * i + 1] >>> 6)) / 2 ** 53;
    return found;
  }
};
function normals(entropy, count2) {
  const half = Math.ceil(count2 / 2);
  const u = entropy.uniforms(2 * half);
  const found = new Float64Array(2 * half);
  for (let i = 0; i < half; i++) {
    const radius = Math.sqrt(-2 * Math.log(u[i] + 2 ** -53));
    const angle = 2 * Math.PI * u[half + i];
    found[i] = radius * Math.cos(angle);
    found[half + i] = radius * Math.sin(angle);
  }
  return found.subarray(0, count2);
}
function coins(entropy, count2, rate) {
  const u = entropy.uniforms(count2);
  const bound = Math.floor(rate * 2 ** 53) / 2 ** 53;
  return Int32Array.from(Array.from(u.keys()).filter((i) => u[i] < bound));
}
var Stream = class {
  a;
  b;
  c;
  counter = 1;
  /** Equal names give equal draws. */
  constructor(...name2) {
    [this.a, this.b, this.c] = mixed(JSON.stringify(name2.map(String)));
    for (let i = 0; i < 15; i++) this.word();
  }
  /** The next 32 bits. */
  word() {
    const sum = this.a + this.b + this.counter | 0;
    this.counter = this.counter + 1 | 0;
    this.a = this.b ^ this.b >>> 9;
    this.b = this.c + (this.c << 3) | 0;
    this.c = (this.c << 21 | this.c >>> 11) + sum | 0;
    return sum >>> 0;
  }
  /** The next number in [0, 1). */
  uniform() {
    return ((this.word() >>> 5) * 67108864 + (this.word() >>> 6)) / 2 ** 53;
  }
  /** A whole number below `bound`. */
  below(bound) {
    return Math.floor(this.uniform() * bound);
  }
  /** The numbers 0..count - 1 in random order. */
  permutation(count2) {
    const order = Int32Array.from({ length: count2 }, (_, i) => i);
    for (let i = count2 - 1; i > 0; i--) {
      const j = this.below(i + 1);
      const kept2 = order[i];
      order[i] = order[j];
      order[j] = kept2;
    }
    return order;
  }
};
async function sha256(...parts) {
  const bytes = parts.map((part) => typeof part === "string" ? new TextEncoder().encode(part) : part);
  const whole = new Uint8Array(bytes.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of bytes) {
    whole.set(part, at);
    at += part.length;
  }
  return new Uint8Array(await crypto.subtle.digest("SHA-256", whole));
}
function hex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
async function sample(rows, most) {
  if (rows <= most) return Int32Array.from({ length: rows }, (_, i) => i);
  const digest = await sha256(`(0, 'sample of rows', ${rows})`);
  const draw = pcg64(new DataView(digest.buffer).getBigUint64(0, true));
  const u = Float64Array.from({ length: rows }, draw);
  const order = Array.from(u.keys()).sort((i, j) => u[i] - u[j] || i - j);
  return Int32Array.from(order.slice(0, most)).sort();
}
function pcg64(seed) {
  const mask = (1n << 128n) - 1n;
  const multiplier = 0x2360ed051fc65da44385df649fccf645n;
  const [high, low, above, below] = seedSequence(seed);
  const increment = ((above << 64n | below) << 1n | 1n) & mask;
  let state = increment;
  const step = () => state = state * multiplier + increment & mask;
  state = state + (high << 64n | low) & mask;
  step();
  return () => {
    step();
    const folded = (state >> 64n ^ state) & 0xffffffffffffffffn;
    const turn = state >> 122n;
    const word = (folded >> turn | folded << (64n - turn & 63n)) & 0xffffffffffffffffn;
    return Number(word >> 11n) / 2 ** 53;
  };
}
function seedSequence(seed) {
  let constant = 1135663077;
  const hashed = (given2) => {
    const value = given2 ^ constant;
    constant = Math.imul(constant, 2468251765);
    const product2 = Math.imul(value, constant);
    return product2 ^ product2 >>> 16;
  };
  const mix = (x, y) => {
    const result = Math.imul(x, 3389127133) - Math.imul(y, 1232336661);
    return result ^ result >>> 16;
  };
  const entropy = [Number(seed & 0xffffffffn) | 0, Number(seed >> 32n) | 0];
  if (seed >> 32n === 0n) entropy.pop();
  const pool = [0, 1, 2, 3].map((i) => hashed(entropy[i] ?? 0));
  for (let from = 0; from < 4; from++) {
    for (let to = 0; to < 4; to++) if (from !== to) pool[to] = mix(pool[to], hashed(pool[from]));
  }
  let other = 2337405405;
  const words = Array.from({ length: 8 }, (_, i) => {
    const value = pool[i % 4] ^ other;
    other = Math.imul(other, 1492356589);
    const product2 = Math.imul(value, other);
    return BigInt((product2 ^ product2 >>> 16) >>> 0);
  });
  return [0, 2, 4, 6].map((i) => words[i] | words[i + 1] << 32n);
}
function mixed(text) {
  const h = [1779033703, 3144134277, 1013904242];
  const k = [597399067, 2869860233, 951274213];
  for (let i = 0; i < text.length; i++) {
    for (let j = 0; j < 3; j++) h[j] = h[(j + 1) % 3] ^ Math.imul(h[j] ^ text.charCodeAt(i), k[j]);
  }
  for (let j = 0; j < 3; j++) h[j] = Math.imul(h[j] ^ h[(j + 1) % 3] >>> 15, k[(j + 1) % 3]);
  return [h[0] | 0, h[1] | 0, h[2] | 0];
}

// src/symbols.ts
var GRIDS = Object.fromEntries([1, 2, 3, 4, 5, 6, 7, 8].map((bits) => [`grid${bits}`, 16 + bits]));
var CODES = { float32: 0, float16: 1, label: 2, ...GRIDS };
var NAMES = new Map(Object.entries(CODES).map(([name2, code]) => [code, name2]));
var STEPS = { 1: 32, 2: 32, 3: 16, 4: 8, 5: 8, 6: 4, 7: 2, 8: 1 };
var EIGHTHS = Array.from({ length: 8 }, (_, i) => Math.sqrt(Math.sqrt(Math.sqrt(2 ** i))));
var [LEAST, MOST] = [-1008, 1016];
var NO_DISTRIBUTIONS = "soft labels are not distributions: NaN, a negative entry or a sum that is not 1";
function nameOf(code) {
  const name2 = NAMES.get(code);
  if (name2 === void 0) {
    throw new Refusal(`feedback in encoding ${code} cannot be read on a phone; set broadcast = 'float16'`);
  }
  return name2;
}
function labelBits(classes) {
  return Math.max(1, 32 - Math.clz32(classes - 1));
}
function unitsOf(encoding) {
  return 2 ** Number(encoding.slice(4)) - 1;
}
function pack(p, encoding, classes) {
  if (encoding === "float32") return new Uint8Array(p.slice().buffer);
  if (encoding === "float16") return new Uint8Array(Uint16Array.from(p, toHalf).buffer);
  const rows = p.length / classes;
  if (encoding === "label") {
    return packBits(
      Array.from({ length: rows }, (_, i) => argmax(p, i * classes, classes)),
      labelBits(classes)
    );
  }
  const units = unitsOf(encoding);
  const levels = p.filter((_, i) => i % classes !== classes - 1).map((value) => Math.round(value * units));
  return packBits(levels, Number(encoding.slice(4)));
}
function unpack(reader, rows, encoding, classes) {
  const p = new Float32Array(rows * classes);
  if (encoding === "label") {
    unpackBits(reader, rows, labelBits(classes)).forEach((label, i) => {
      if (label >= classes) throw new Refusal(`label ${label} is not one of ${classes} classes`);
      p[i * classes + label] = 1;
    });
    return p;
  }
  if (encoding.startsWith("grid")) {
    const units = unitsOf(encoding);
    const levels = unpackBits(reader, rows * (classes - 1), Number(encoding.slice(4)));
    for (let i = 0; i < rows; i++) {
      let last = units;
      for (let c = 0; c < classes - 1; c++) {
        const level = levels[i * (classes - 1) + c];
        last -= level;
        p[i * classes + c] = level / units;
      }
      if (last < 0) throw new Refusal("soft labels sum to more than one");
      p[i * classes + classes - 1] = last / units;
    }
    return p;
  }
  const half = encoding === "float16";
  const raw = reader.take(p.length * (half ? 2 : 4));
  const view = new DataView(raw.buffer, raw.byteOffset);
  for (let i = 0; i < p.length; i++) p[i] = half ? fromHalf(view.getUint16(2 * i, true)) : view.getFloat32(4 * i, true);
  const slack = 1001e-6 + (half ? 2 ** -10 + classes * 2 ** -25 : 0);
  for (let i = 0; i < rows; i++) {
    let sum = 0;
    for (let c = 0; c < classes; c++) sum += p[i * classes + c] >= 0 ? p[i * classes + c] : NaN;
    if (!(Math.abs(sum - 1) <= slack)) throw new Refusal(NO_DISTRIBUTIONS);
  }
  return p;
}
function packWeights(w, bits) {
  const out = new Writer();
  if (w.every((value) => value === 1)) return out.byte(0).done();
  if (w.every((value) => value === w[0])) return out.byte(1).float32(w[0]).done();
  if (!bits) return out.byte(2).raw(new Uint8Array(w.slice().buffer)).done();
  const [top, levels] = weightLevels(w, bits);
  return out.byte(3).byte(bits).varint(top >= 0 ? 2 * top : -2 * top - 1).raw(packBits(levels, bits)).done();
}
function weightLevels(w, bits) {
  const [step, most] = [STEPS[bits], 2 ** bits - 1];
  const least = Math.floor(LEAST / step);
  const places = Array.from(w, (value) => {
    return value > 0 ? Math.min(Math.max(rint(8 / step * Math.log2(value)), least), Math.floor(MOST / step)) : NaN;
  });
  const largest = places.reduce((a, b) => b > a ? b : a, least);
  const top = Math.max(largest, most - 1 + least);
  const levels = places.map((place) => place === place ? Math.min(Math.max(most - (top - place), 1), most) : 0);
  return [top, Int32Array.from(levels)];
}
function weightsAt(levels, top, bits) {
  return Float32Array.from(levels, (level) => {
    const eighths = (level - (2 ** bits - 1) + top) * STEPS[bits];
    return level ? EIGHTHS[eighths & 7] * 2 ** (eighths >> 3) : 0;
  });
}
function argmax(values, at, count2) {
  let best = 0;
  for (let c = 1; c < count2; c++) if (values[at + c] > values[at + best]) best = c;
  return best;
}
function rint(value) {
  const down = Math.floor(value);
  const over = value - down;
  return over > 0.5 || over === 0.5 && down % 2 !== 0 ? down + 1 : down;
}
var WORD = new Uint32Array(1);
var SINGLE = new Float32Array(WORD.buffer);
function toHalf(value) {
  SINGLE[0] = value;
  const word = WORD[0];
  const sign = word >>> 16 & 32768;
  const size = Math.abs(SINGLE[0]);
  if (!(size < 65520)) return sign | (size === size ? 31744 : 32256);
  if (size < 2 ** -14) return sign | rint(size * 2 ** 24);
  const exponent = (word >>> 23 & 255) - 112;
  const rest = word & 8191;
  const up = rest > 4096 || rest === 4096 && (word & 8192) !== 0 ? 1 : 0;
  return sign | (exponent << 10 | word >>> 13 & 1023) + up;
}
function fromHalf(bits) {
  const [sign, exponent, rest] = [bits & 32768 ? -1 : 1, bits >> 10 & 31, bits & 1023];
  if (exponent === 31) return rest ? NaN : sign * Infinity;
  return exponent ? sign * (1 + rest / 1024) * 2 ** (exponent - 15) : sign * rest * 2 ** -24;
}

// src/codec.ts
function decodeQuery(frame, fingerprint, size, classes) {
  const [header, reader] = read(frame, QUERY);
  const told = Object.entries(FLAGS).filter(([, flag]) => header.flags & flag);
  if (told.length) {
    const names = told.map(([name2]) => name2).join(", ");
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
  let feedback = null;
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
function encodeRelease(ballot, event, query, client) {
  const body = new Writer().raw(packEvent(event)).raw(packWeights(ballot.w, ballot.weightBits));
  const { classes, round, fingerprint } = query;
  const sha = Uint8Array.from({ length: 8 }, (_, i) => parseInt(fingerprint.slice(2 * i, 2 * i + 2), 16));
  const encoding = CODES[ballot.encoding];
  const header = { kind: RELEASE, encoding, classes, rows: ballot.w.length, round, client, flags: 0, base: 0 };
  return write({ ...header, fingerprint: sha }, body.raw(pack(ballot.p, ballot.encoding, classes)).done());
}
function packEvent(event) {
  if (event.kind !== "sampled_gaussian") return Uint8Array.of(event.kind === "no_op" ? 1 : 0);
  return new Writer().byte(3).float64(event.rate).float64(event.noise).float64(event.count).float64(0).done();
}

// src/eigen.ts
var ENOUGH = 1e-7;
async function leading(matrix, n, count2, rest = async () => {
}) {
  const stream = new Stream("lanczos", n);
  const basis = [];
  const diagonal = [];
  const beside2 = [];
  let next = fresh(basis, n, stream);
  for (; ; ) {
    basis.push(next);
    await rest(basis.length / n);
    const w = times(matrix, n, next);
    diagonal.push(dot(w, next));
    orthogonalize(w, basis);
    const length = Math.sqrt(dot(w, w));
    const scale = Math.max(...diagonal.map(Math.abs));
    const broken = length <= 1e-12 * scale;
    beside2.push(broken ? 0 : length);
    const steps = basis.length;
    if (steps === n || steps >= 2 * count2 && steps % 20 === 0) {
      const small = tridiagonal(diagonal, beside2);
      const found = Math.min(count2, steps);
      const left = small.last.slice(0, found).map((last) => Math.abs(last * beside2[steps - 1]));
      if (steps === n || Math.max(...left) <= ENOUGH * Math.abs(small.values[0])) {
        return { values: small.values.slice(0, found), vectors: small.mixes(found).map((mix) => mixed2(basis, mix, n)) };
      }
    }
    next = broken ? fresh(basis, n, stream) : w.map((value) => value / length);
  }
}
function fresh(basis, n, stream) {
  const w = Float64Array.from({ length: n }, () => stream.uniform() - 0.5);
  orthogonalize(w, basis);
  const length = Math.sqrt(dot(w, w));
  return w.map((value) => value / length);
}
function orthogonalize(w, basis) {
  for (let twice = 0; twice < 2; twice++) {
    for (const v of basis) {
      const share = dot(w, v);
      for (let i = 0; i < w.length; i++) w[i] -= share * v[i];
    }
  }
}
function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}
function times(matrix, n, v) {
  const out = new Float64Array(n);
  for (let i = 0; i < n; i++) {
    let s0 = 0;
    let s1 = 0;
    const row = i * n;
    for (let j = 0; j + 1 < n; j += 2) {
      s0 += matrix[row + j] * v[j];
      s1 += matrix[row + j + 1] * v[j + 1];
    }
    out[i] = s0 + s1 + (n % 2 ? matrix[row + n - 1] * v[n - 1] : 0);
  }
  return out;
}
function mixed2(basis, mix, n) {
  const out = new Float64Array(n);
  basis.forEach((v, k) => {
    const share = mix[k];
    for (let i = 0; i < n; i++) out[i] += share * v[i];
  });
  return out;
}
function tridiagonal(diagonal, beside2) {
  const n = diagonal.length;
  const d = Float64Array.from(diagonal);
  const e = Float64Array.from(beside2);
  e[n - 1] = 0;
  const z = Array.from({ length: n }, (_, i) => Float64Array.from({ length: n }, (_2, j) => i === j ? 1 : 0));
  for (let l = 0; l < n; l++) {
    for (; ; ) {
      let m = l;
      while (m < n - 1 && Math.abs(e[m]) > 23e-17 * (Math.abs(d[m]) + Math.abs(d[m + 1]))) m++;
      if (m === l) break;
      let g = (d[l + 1] - d[l]) / (2 * e[l]);
      let r = Math.hypot(g, 1);
      g = d[m] - d[l] + e[l] / (g + (g >= 0 ? r : -r));
      let [s, c, p] = [1, 1, 0];
      let i = m - 1;
      for (; i >= l; i--) {
        const f = s * e[i];
        const b = c * e[i];
        r = Math.hypot(f, g);
        e[i + 1] = r;
        if (r === 0) {
          d[i + 1] -= p;
          e[m] = 0;
          break;
        }
        s = f / r;
        c = g / r;
        g = d[i + 1] - p;
        r = (d[i] - g) * s + 2 * c * b;
        p = s * r;
        d[i + 1] = g + p;
        g = c * r - b;
        const [low, high] = [z[i], z[i + 1]];
        for (let k = 0; k < n; k++) {
          const kept2 = high[k];
          high[k] = s * low[k] + c * kept2;
          low[k] = c * low[k] - s * kept2;
        }
      }
      if (r === 0 && i >= l) continue;
      d[l] -= p;
      e[l] = g;
      e[m] = 0;
    }
  }
  const order = Array.from(d.keys()).sort((i, j) => d[j] - d[i]);
  return {
    values: Float64Array.from(order, (i) => d[i]),
    last: order.map((i) => z[i][n - 1]),
    mixes: (count2) => order.slice(0, count2).map((i) => z[i])
  };
}

// src/features.ts
var SIDE = 8;
var { fround } = Math;
var PI = fround(Math.PI);
var CELLS = 7;
var BINS = 8;
function sizeOf(shape) {
  return shape.reduce((product2, side) => product2 * side, 1);
}
function featuresOf(shape) {
  if (shape.length === 3 && Math.min(shape[1], shape[2]) >= SIDE) return shapes(shape);
  const width = sizeOf(shape);
  return { width, write: (inputs, from, to, out) => out.set(inputs.x.subarray(from * width, to * width)) };
}
function shapes(shape) {
  const [channels, height, width] = shape;
  const cells = Math.min(CELLS, Math.floor(height / 2), Math.floor(width / 2));
  const size = sizeOf(shape);
  const histogram = new Float64Array(cells * cells * BINS);
  const own = (cells - 1) ** 2 * 4 * BINS;
  return {
    width: own,
    write(inputs, from, to, out) {
      for (let row = from; row < to; row++) {
        histogram.fill(0);
        for (let y = 0; y < height; y++) {
          for (let x = 0; x < width; x++) {
            let [gx, gy, strength] = [0, 0, -1];
            for (let c = 0; c < channels; c++) {
              const at = row * size + (c * height + y) * width + x;
              const dx = x > 0 && x < width - 1 ? fround(inputs.x[at + 1] - inputs.x[at - 1]) : 0;
              const dy = y > 0 && y < height - 1 ? fround(inputs.x[at + width] - inputs.x[at - width]) : 0;
              const length = fround(Math.sqrt(dx * dx + dy * dy));
              if (length > strength) [gx, gy, strength] = [dx, dy, length];
            }
            if (strength === 0) continue;
            let angle = fround(fround(Math.atan2(gy, gx)) % PI);
            if (angle < 0) angle = fround(angle + PI);
            angle = fround(angle * fround(BINS / Math.PI));
            const low = Math.floor(angle);
            const share = fround(fround(angle - low) * strength);
            const cell = (Math.floor(y * cells / height) * cells + Math.floor(x * cells / width)) * BINS;
            histogram[cell + low % BINS] += fround(strength - share);
            histogram[cell + (low + 1) % BINS] += share;
          }
        }
        blocks(histogram, cells, out, (row - from) * own);
      }
    }
  };
}
function blocks(histogram, cells, out, at) {
  for (let i = 0; i < cells - 1; i++) {
    for (let j = 0; j < cells - 1; j++) {
      const corners = [i * cells + j, (i + 1) * cells + j, i * cells + j + 1, (i + 1) * cells + j + 1];
      let squares = 0;
      for (const corner of corners) {
        for (let b = 0; b < BINS; b++) squares += fround(Math.max(histogram[corner * BINS + b], 0)) ** 2;
      }
      const length = fround(Math.sqrt(fround(squares + 0.1)));
      for (const corner of corners) {
        for (let b = 0; b < BINS; b++) {
          out[at++] = Math.sqrt(fround(fround(Math.max(histogram[corner * BINS + b], 0)) / length));
        }
      }
    }
  }
}

// src/pace.ts
var LONGEST = 50;
function pacer(pace, doing) {
  let last = performance.now();
  return async (share) => {
    if (performance.now() - last > LONGEST) {
      pace.progress?.(doing, share);
      await new Promise((resolve) => setTimeout(resolve, 0));
      last = performance.now();
    }
    if (pace.signal?.aborted) throw new Cancelled(`stopped while ${doing}`);
  };
}

// src/space.ts
var WIDE = 1024;
var CHUNK = 256;
var REFERENCE = 5e3;
var PROBES = 1e3;
function count(rows) {
  return rows.columns ? rows.data.length / rows.columns : 0;
}
function pick(rows, numbers) {
  const { data, columns } = rows;
  const picked = new Float32Array(numbers.length * columns);
  for (let i = 0; i < numbers.length; i++) {
    picked.set(data.subarray(numbers[i] * columns, (numbers[i] + 1) * columns), i * columns);
  }
  return { data: picked, columns };
}
async function spaceOf(transfer, dimensions, pace = {}) {
  const components = await componentsOf(transfer, dimensions, pace);
  const project = (inputs, pace2 = {}) => projected(components, inputs, pace2);
  return { public: await project(transfer, pace), project };
}
async function componentsOf(transfer, dimensions, pace = {}) {
  const features = featuresOf(transfer.shape);
  const step = features.width > WIDE ? Math.ceil(transfer.rows / 2e3) : 1;
  const taken = Int32Array.from({ length: Math.ceil(transfer.rows / step) }, (_, i) => i * step);
  const center = await mean(features, transfer, taken);
  return { features, center, ...await principal(features, transfer, taken, center, dimensions, pace) };
}
async function mean(features, transfer, taken) {
  const sum = new Float64Array(features.width);
  const row = new Float32Array(features.width);
  for (const i of taken) {
    features.write(transfer, i, i + 1, row);
    for (let j = 0; j < row.length; j++) sum[j] += row[j];
  }
  return Float32Array.from(sum, (value) => value / taken.length);
}
async function principal(features, transfer, taken, center, dimensions, pace) {
  const [n, d] = [taken.length, features.width];
  const rest = pacer(pace, "looking at the public images");
  const about = new Float32Array(n * d);
  for (let i = 0; i < n; i++) {
    const row = about.subarray(i * d, (i + 1) * d);
    features.write(transfer, taken[i], taken[i] + 1, row);
    for (let j = 0; j < d; j++) row[j] -= center[j];
    await rest(0);
  }
  const tall = n > d;
  const matrix = tall ? await scatter(about, n, d, rest) : await gram(about, n, d, rest);
  const { values, vectors } = await leading(matrix, Math.min(n, d), dimensions, rest);
  const kept2 = vectors.filter((_, k) => values[k] > 1e-9 * values[0]);
  const variances = Array.from(values.slice(0, kept2.length), (value) => value / n);
  if (tall) return { directions: kept2.map((vector) => Float32Array.from(vector)), variances };
  const directions = kept2.map((mix, k) => {
    const direction = new Float64Array(d);
    for (let i = 0; i < n; i++) {
      const share = mix[i] / Math.sqrt(values[k]);
      for (let j = 0; j < d; j++) direction[j] += share * about[i * d + j];
    }
    return Float32Array.from(direction);
  });
  return { directions, variances };
}
async function scatter(about, n, d, rest) {
  const out = new Float64Array(d * d);
  const four = new Float64Array(4 * d);
  for (let i = 0; i < n; i += 4) {
    four.fill(0);
    four.set(about.subarray(i * d, Math.min(i + 4, n) * d));
    for (let a = 0; a < d; a++) {
      const v0 = four[a];
      const v1 = four[d + a];
      const v2 = four[2 * d + a];
      const v3 = four[3 * d + a];
      for (let b = a, at = a * d + a; b < d; b++, at++) {
        out[at] += v0 * four[b] + v1 * four[d + b] + v2 * four[2 * d + b] + v3 * four[3 * d + b];
      }
    }
    await rest(i / n);
  }
  for (let a = 0; a < d; a++) for (let b = 0; b < a; b++) out[a * d + b] = out[b * d + a];
  return out;
}
async function gram(about, n, d, rest) {
  const out = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      let s0 = 0;
      let s1 = 0;
      for (let k = 0, a = i * d, b = j * d; k + 1 < d; k += 2, a += 2, b += 2) {
        s0 += about[a] * about[b];
        s1 += about[a + 1] * about[b + 1];
      }
      if (d % 2) s0 += about[i * d + d - 1] * about[j * d + d - 1];
      out[i * n + j] = out[j * n + i] = s0 + s1;
    }
    await rest(i / n);
  }
  return out;
}
async function projected(components, inputs, pace = {}) {
  const { features, center, directions } = components;
  const [d, columns] = [features.width, directions.length];
  const data = new Float32Array(inputs.rows * columns);
  const part = new Float32Array(Math.min(CHUNK, inputs.rows) * d);
  const rest = pacer(pace, "finding where the images lie");
  for (let from = 0; from < inputs.rows; from += CHUNK) {
    const to = Math.min(from + CHUNK, inputs.rows);
    features.write(inputs, from, to, part);
    for (let i = 0; i < to - from; i++) {
      for (let j = 0; j < d; j++) part[i * d + j] -= center[j];
      for (let k = 0; k < columns; k++) {
        const direction = directions[k];
        let sum = 0;
        for (let j = 0, at = i * d; j < d; j++, at++) sum += part[at] * direction[j];
        data[(from + i) * columns + k] = sum;
      }
    }
    await rest(to / inputs.rows);
  }
  return { data, columns };
}
async function nearest(x, to, k, pace = {}) {
  const [n, others, d] = [count(x), count(to), x.columns];
  const found = new Float32Array(n * k);
  const best = new Float64Array(k);
  const rest = pacer(pace, "comparing images");
  for (let i = 0; i < n; i++) {
    best.fill(Infinity);
    for (let j = 0; j < others; j++) {
      const limit = best[k - 1];
      let sum = 0;
      for (let a = i * d, b = j * d, end = a + d; a < end && sum < limit; ) {
        for (const stop = Math.min(a + 16, end); a < stop; a++, b++) {
          const gap = x.data[a] - to.data[b];
          sum += gap * gap;
        }
      }
      if (sum >= limit) continue;
      let place = k - 1;
      for (; place > 0 && best[place - 1] > sum; place--) best[place] = best[place - 1];
      best[place] = sum;
    }
    for (let j = 0; j < k; j++) found[i * k + j] = Math.sqrt(best[j]);
    await rest(i / n);
  }
  return found;
}
async function around(all, neighbors2, pace = {}) {
  const rows = count(all);
  const some = await sample(rows, REFERENCE);
  const own = new Set(some);
  const k = Math.min(neighbors2, Math.max(some.length - 1, 1));
  const wide = Math.min(k + 1, some.length);
  const found = await nearest(all, pick(all, some), wide, pace);
  const r = (i, j) => found[i * wide + j + (own.has(i) ? wide - k : 0)];
  const last = Float32Array.from({ length: rows }, (_, i) => r(i, k - 1));
  const least = 0.1 * (median(last) || last.reduce((sum, value) => sum + value, 0) / rows || 1);
  const logR = Float32Array.from({ length: rows }, (_, i) => {
    let sum = 0;
    for (let j = 0; j < k; j++) sum += Math.log(Math.max(r(i, j), least));
    return sum / k;
  });
  return { logR, rows: some.length, meanDigamma: meanDigamma(k), dimension: await intrinsicDimension(all, pace) };
}
async function intrinsicDimension(all, pace = {}) {
  const rows = count(all);
  const k = Math.min(10, rows - 1);
  if (k < 2) return 1;
  const r = await nearest(pick(all, await sample(rows, PROBES)), all, k + 1, pace);
  let [sum, terms] = [0, 0];
  for (let at = 0; at < r.length; at += k + 1) {
    if (!(r[at + 1] > 0)) continue;
    for (let j = 1; j < k; j++, terms++) sum += Math.log(r[at + k] / r[at + j]);
  }
  const inverse = terms ? sum / terms : Infinity;
  return Math.min(Math.max(1 / Math.max(inverse, 1e-9), 1), all.columns);
}
function meanDigamma(k) {
  let [psi, sum] = [-0.5772156649015329, 0];
  for (let j = 1; j <= k; psi += 1 / j++) sum += psi;
  return sum / k;
}
function median(values) {
  const sorted = values.slice().sort();
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

// src/spec.ts
var CALL = /^([A-Za-z_]\w*)(?:\((.*)\))?$/s;
var OPTION = /^([A-Za-z_]\w*)\s*=\s*(.+)$/s;
var NUMBER = /^[+-]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][+-]?\d+)?$/;
function parse(text) {
  const call = CALL.exec(text.trim());
  const given2 = call?.[2]?.trim() ?? "";
  if (call === null) throw unreadable(text);
  const options2 = {};
  for (const one of given2 === "" ? [] : split(given2.replace(/,\s*$/, ""), ",")) {
    const found = OPTION.exec(one);
    if (found === null || found[1] in options2) throw unreadable(text);
    options2[found[1]] = literal(found[2], text);
  }
  return { name: call[1], options: options2 };
}
function split(text, separator) {
  const pieces = [""];
  let depth = 0;
  let quote = "";
  for (const letter of text) {
    if (quote) quote = letter === quote ? "" : quote;
    else if (letter === "'" || letter === '"') quote = letter;
    else if ("([{".includes(letter)) depth += 1;
    else if (")]}".includes(letter)) depth -= 1;
    if (letter === separator && depth === 0 && !quote) pieces.push("");
    else pieces[pieces.length - 1] += letter;
  }
  if (pieces.some((piece) => piece.trim() === "")) throw unreadable(text);
  return pieces.map((piece) => piece.trim());
}
function options(spec, defaults, where) {
  const all = { ...defaults };
  for (const [key, value] of Object.entries(spec.options)) {
    const takes = Object.keys(defaults).join(", ") || "none";
    if (!(key in defaults)) throw new Refusal(`${where}: ${spec.name} has no option '${key}' here; it takes ${takes}`);
    const kind = typeof defaults[key];
    if (typeof value !== kind) throw new Refusal(`${where}: ${spec.name}: '${key}' must be a ${kind}, got ${value}`);
    all[key] = value;
  }
  return all;
}
function aboveZero(where, name2, given2) {
  for (const [key, value] of Object.entries(given2)) {
    if (!(typeof value === "number" && value > 0 && value < Infinity)) {
      throw new Refusal(`${where}: ${name2}: '${key}' must be above 0 and finite, got ${value}`);
    }
  }
}
function literal(text, whole) {
  if (text === "True" || text === "False") return text === "True";
  if (text === "inf") return Infinity;
  if (NUMBER.test(text)) return Number(text.replaceAll("_", ""));
  if (/^(['"])[^'"\\]*\1$/.test(text)) return text.slice(1, -1);
  throw unreadable(whole);
}
function unreadable(text) {
  return new Refusal(`cannot read '${text.slice(0, 100)}'; expected 'name' or 'name(option=value)'`);
}

// src/expertise.ts
var RANGE = 80;
var ABSENT = -60;
var DENSITY = { neighbors: 5, dimensions: 80, sharpness: 1.5, concentration: 100 };
var NEIGHBORS = { sharpness: 0.75, neighbors: 5, dimensions: 80, concentration: 100 };
var STATIC = ["density"];
function expertiseOf(text) {
  const spec = parse(text);
  const known = {
    uniform: {},
    confidence: { power: 1 },
    entropy: { floor: 0.01 },
    density: DENSITY
  };
  return checked(spec, known, "expertise", "uniform");
}
function evidenceOf(text) {
  return checked(parse(text), { none: {}, neighbors: NEIGHBORS }, "evidence", "none");
}
function checked(spec, known, key, other) {
  const defaults = known[spec.name];
  if (defaults === void 0) {
    const names = Object.keys(known).join(", ");
    throw new Refusal(`${key}: a phone cannot do '${spec.name}', only ${names}; set ${key} = '${other}'`);
  }
  const given2 = options(spec, defaults, key);
  aboveZero(key, spec.name, given2);
  return { name: spec.name, options: given2 };
}
function weigh(spec, p, classes) {
  return Float32Array.from({ length: p.length / classes }, (_, i) => {
    const row = p.subarray(i * classes, (i + 1) * classes);
    if (spec.name === "confidence") return Math.max(...row) ** spec.options["power"];
    if (spec.name !== "entropy") return 1;
    const bits = row.reduce((sum, value) => sum - value * Math.log(Math.max(value, 1e-12)), 0);
    return 1 / (Math.max(bits, 0) / Math.log(classes) + spec.options["floor"]);
  });
}
var Surroundings = class {
  constructor(transfer) {
    this.transfer = transfer;
  }
  transfer;
  spaces = /* @__PURE__ */ new Map();
  densities = /* @__PURE__ */ new Map();
  space(dimensions, pace) {
    return kept(this.spaces, dimensions, () => spaceOf(this.transfer, dimensions, pace));
  }
  around(dimensions, neighbors2, pace) {
    const make = async () => around((await this.space(dimensions, pace)).public, neighbors2, pace);
    return kept(this.densities, `${dimensions} ${neighbors2}`, make);
  }
};
function kept(cache, key, make) {
  const found = cache.get(key);
  if (found) return found;
  const made = make();
  cache.set(key, made);
  made.catch(() => cache.delete(key));
  return made;
}
async function density(spec, where, mine, rows, pace = {}) {
  const given2 = spec.options;
  if (mine.rows === 0) return new Float32Array(rows);
  const space = await where.space(given2.dimensions, pace);
  const own = await space.project(mine, pace);
  const ratios = await logRatios(space.public, own, where, given2, pace);
  return ratios.map((ratio) => Math.exp(Math.min(Math.max(given2.sharpness * ratio, -RANGE), RANGE)));
}
async function neighbors(spec, where, mine, classes, pace = {}) {
  const given2 = spec.options;
  const space = await where.space(given2.dimensions, pace);
  const rows = count(space.public);
  const e = new Float32Array(rows * classes).fill(given2.sharpness * ABSENT);
  if (mine.rows === 0) return e;
  const all = await space.project(mine, pace);
  const found = [];
  for (let c = 0; c < classes; c++) {
    const own = pick(
      all,
      Array.from(mine.y.keys()).filter((i) => mine.y[i] === c)
    );
    found.push(count(own) ? await logRatios(space.public, own, where, given2, pace) : null);
  }
  for (let i = 0; i < rows; i++) {
    const held = found.filter((ratios) => ratios !== null).map((ratios) => ratios[i]);
    const absent = Math.min(ABSENT, ...held);
    for (let c = 0; c < classes; c++) e[i * classes + c] = given2.sharpness * (found[c]?.[i] ?? absent);
  }
  return e;
}
function beside(p, e, classes) {
  const out = new Float32Array(p.length);
  for (let at = 0; at < p.length; at += classes) {
    const votes = Array.from({ length: classes }, (_, c) => Math.log(p[at + c]) + e[at + c]);
    const most = Math.max(...votes);
    const shares = votes.map((vote) => Math.exp(vote - most));
    const total2 = shares.reduce((sum, share) => sum + share, 0);
    shares.forEach((share, c) => out[at + c] = share / total2);
  }
  return out;
}
async function logRatios(all, own, where, given2, pace) {
  const theirs = await where.around(given2.dimensions, given2.neighbors, pace);
  const k = Math.min(given2.neighbors, count(own));
  const r = await nearest(all, own, k, pace);
  const most = Math.log(given2.concentration * count(own) / theirs.rows);
  return theirs.logR.map((logR, i) => {
    let mean2 = 0;
    for (let j = 0; j < k; j++) mean2 += Math.log(Math.max(r[i * k + j], 0.1 * Math.exp(logR))) / k;
    return Math.min(meanDigamma(k) - theirs.meanDigamma - theirs.dimension * (mean2 - logR), most);
  });
}

// src/losses.ts
var FLOOR = 1e-6;
function softmax(z, T = 1) {
  const p = Float64Array.from(z);
  const most = p.reduce((a, b) => Math.max(a, b), -Infinity);
  let sum = 0;
  for (let c = 0; c < p.length; c++) sum += p[c] = Math.exp((p[c] - most) / T);
  for (let c = 0; c < p.length; c++) p[c] /= sum;
  return p;
}
var crossEntropy = (z, p, at, dz) => {
  const q = softmax(z);
  let [loss, mass] = [0, 0];
  for (let c = 0; c < z.length; c++) mass += p[at + c];
  for (let c = 0; c < z.length; c++) {
    const target = p[at + c];
    if (target > 0) loss -= target * Math.log(Math.max(q[c], 1e-300));
    dz[c] = mass * q[c] - target;
  }
  return loss;
};
function distillLoss(text) {
  const spec = parse(text);
  const given2 = options(
    spec,
    spec.name === "kl" ? { temperature: 1, hard: 0, smoothing: 0, floor: FLOOR } : {},
    "distill"
  );
  switch (spec.name) {
    case "kl":
      return kl(given2["temperature"], given2["hard"], given2["smoothing"], given2["floor"]);
    case "cross_entropy":
      return crossEntropy;
    case "hard":
      return (z, p, at, dz) => crossEntropy(z, oneHot(p, at, z.length), 0, dz);
    case "logit_matching":
      return matched((gap) => [gap * gap / 2, gap]);
    case "mae":
      return matched((gap) => [Math.abs(gap), Math.sign(gap)]);
  }
  throw new Refusal(`distill: a phone cannot do '${spec.name}'; set distill = 'kl(temperature=1.0)'`);
}
function kl(T, hard2, smoothing, floor) {
  return (z, p, at, dz) => {
    const classes = z.length;
    const given2 = Float64Array.from({ length: classes }, (_, c) => (1 - smoothing) * p[at + c] + smoothing / classes);
    const target = T === 1 ? given2 : softmax(
      given2.map((value) => Math.log(Math.max(value, floor))),
      T
    );
    const q = softmax(z, T);
    const mass = target.reduce((sum, value) => sum + value, 0);
    let loss = 0;
    for (let c = 0; c < classes; c++) {
      if (target[c] > 0) loss += T * T * target[c] * Math.log(target[c] / Math.max(q[c], 1e-300));
      dz[c] = T * (mass * q[c] - target[c]);
    }
    if (!hard2) return loss;
    const soft = Float64Array.from(dz);
    const other = crossEntropy(z, oneHot(given2, 0, classes), 0, dz);
    for (let c = 0; c < classes; c++) dz[c] = (1 - hard2) * soft[c] + hard2 * dz[c];
    return (1 - hard2) * loss + hard2 * other;
  };
}
function matched(each) {
  return (z, p, at, dz) => {
    const classes = z.length;
    const logs = Array.from({ length: classes }, (_, c) => Math.log(Math.max(p[at + c], FLOOR)));
    const mean2 = (values) => values.reduce((sum, value) => sum + value, 0) / classes;
    const [ours, theirs] = [mean2(Array.from(z)), mean2(logs)];
    let [loss, slopes] = [0, 0];
    for (let c = 0; c < classes; c++) {
      const [value, slope] = each(z[c] - ours - (logs[c] - theirs));
      loss += value / classes;
      slopes += slope / classes;
      dz[c] = slope / classes;
    }
    for (let c = 0; c < classes; c++) dz[c] -= slopes / classes;
    return loss;
  };
}
function oneHot(p, at, classes) {
  const one = new Float64Array(classes);
  one[argmax(p, at, classes)] = 1;
  return one;
}

// src/privacy.ts
function eventOf({ rate, noise }, count2) {
  return { kind: "sampled_gaussian", rate, noise, count: count2 };
}
var DP_SGD = { rate: 0.1, clip: 0.1, examples: 100, step: 1.5 };
var MOMENTUM = 0.9;
var PACE = 2 / 15;
var HAIR = 5e-6;
function protectionOf(protect) {
  const spec = parse(protect);
  if (spec.name === "none") return options(spec, {}, "protect") && null;
  if (spec.name !== "dp_sgd") {
    throw new Refusal(
      `protect: a phone cannot do '${spec.name}', only none and dp_sgd; use another device for this run`
    );
  }
  const given2 = options(spec, DP_SGD, "protect");
  aboveZero("protect", "dp_sgd", given2);
  if (given2.rate > 1) throw new Refusal(`protect: dp_sgd: 'rate' must be at most 1, got ${given2.rate}`);
  return given2;
}
function spending(protection, run, told = 0) {
  const { epsilon, delta, rounds, epochs } = run;
  if (!(epsilon > 0 && epsilon < Infinity)) throw new Refusal(`epsilon: dp_sgd needs a budget above 0, got ${epsilon}`);
  if (!(delta > 0 && delta < 1)) throw new Refusal(`delta: must be in (0, 1), got ${delta}`);
  if (!(epochs >= 1)) throw new Refusal("local-epochs: 0 learns nothing; dp_sgd needs at least 1");
  const steps = Math.max(1, Math.round(epochs / protection.rate));
  const noise = Math.max(calibrated(epsilon, delta, protection.rate, steps * rounds), told);
  return { ...protection, noise, steps, rounds };
}
async function descend(network2, mine, budget, entropy, pace = {}) {
  const { theta } = network2;
  const { rate, clip, examples, step, steps, noise } = budget;
  const velocity = new Float64Array(theta.length);
  const rest = pacer(pace, "training with noise");
  for (let t = 0; t < steps; t++) {
    await rest(t / steps);
    const chosen = rate === 1 ? Int32Array.from(mine.y.keys()) : coins(entropy, mine.rows, rate);
    const total2 = await clippedSum(network2, mine, chosen, clip, () => rest(t / steps));
    const draws = normals(entropy, total2.length);
    const move = PACE * step * (1 - t / steps);
    for (let i = 0; i < theta.length; i++) {
      velocity[i] = MOMENTUM * velocity[i] + (total2[i] + noise * clip * draws[i]) / (clip * rate * examples);
      theta[i] -= move * velocity[i];
    }
  }
  return eventOf(budget, steps);
}
async function clippedSum(network2, mine, chosen, clip, rest = async () => {
}) {
  const total2 = new Float64Array(network2.theta.length);
  const gradient = network2.zeros();
  const size = sizeOf(mine.shape);
  const dz = new Float64Array(network2.classes);
  const label = new Float32Array(network2.classes);
  for (const row of chosen) {
    await rest();
    gradient.fill(0);
    label.fill(0);
    label[mine.y[row]] = 1;
    crossEntropy(network2.forward(mine.x.subarray(row * size, (row + 1) * size)), label, 0, dz);
    network2.backward(dz, gradient);
    let squares = 0;
    for (let i = 0; i < gradient.length; i++) squares += gradient[i] * gradient[i];
    if (!Number.isFinite(squares)) continue;
    const factor = Math.min(1, clip * (1 - HAIR) / Math.max(Math.sqrt(squares), 1e-30));
    for (let i = 0; i < gradient.length; i++) total2[i] += factor * gradient[i];
  }
  return total2;
}

// src/release.ts
function chain(text, key) {
  return split(text, "|").map((one) => mechanism(one, key));
}
function prepare(steps, ballot, stream) {
  return steps.reduce((before, step) => step(before, stream), ballot);
}
function mechanism(text, key) {
  const spec = parse(text);
  switch (spec.name) {
    case "float32":
      options(spec, {}, key);
      return (ballot) => ({ ...ballot, encoding: "float32" });
    case "float16":
      options(spec, {}, key);
      return (ballot) => ({ ...ballot, p: ballot.p.map((value) => fromHalf(toHalf(value))), encoding: "float16" });
    case "argmax":
      options(spec, {}, key);
      return (ballot) => ({ ...ballot, p: hard(ballot.p, ballot.classes), encoding: "label" });
    case "quantize": {
      const { bits } = options(spec, { bits: 4 }, key);
      if (!(bits in STEPS)) throw new Refusal(`${key}: quantize: 'bits' must be in 1..8, got ${bits}`);
      const encoding = `grid${bits}`;
      return (ballot, stream) => {
        const levels = simplexGrid(ballot.p, ballot.classes, unitsOf(encoding), stream);
        return { ...ballot, p: levels.map((level) => level / unitsOf(encoding)), encoding };
      };
    }
    case "weights": {
      const { bits } = options(spec, { bits: 6 }, key);
      if (!(bits in STEPS)) throw new Refusal(`${key}: weights: 'bits' must be in 1..8, got ${bits}`);
      return (ballot) => {
        const [top, levels] = weightLevels(ballot.w, bits);
        return { ...ballot, w: weightsAt(levels, top, bits), weightBits: bits };
      };
    }
  }
  const does = "float32, float16, argmax, quantize and weights";
  throw new Refusal(`${key}: a phone cannot do '${spec.name}', only ${does}; set ${key} = 'float16'`);
}
function simplexGrid(p, classes, units, stream) {
  const levels = new Float32Array(p.length);
  const remainder = new Float64Array(classes);
  for (let at = 0; at < p.length; at += classes) {
    let sum = 0;
    for (let c = 0; c < classes; c++) sum += p[at + c];
    let missing = units;
    for (let c = 0; c < classes; c++) {
      const scaled = p[at + c] / sum * units;
      levels[at + c] = Math.floor(scaled + 1e-9);
      remainder[c] = scaled - levels[at + c];
      missing -= levels[at + c];
    }
    const order = Array.from(stream.permutation(classes)).sort((a, b) => remainder[b] - remainder[a]);
    for (const c of order.slice(0, missing)) levels[at + c] += 1;
  }
  return levels;
}
function hard(p, classes) {
  const one = new Float32Array(p.length);
  for (let at = 0; at < p.length; at += classes) one[at + argmax(p, at, classes)] = 1;
  return one;
}

// src/training.ts
async function learn(network2, inputs, targets, loss, training, stream, pace = {}, doing = "training") {
  const { theta, classes } = network2;
  const [gradient, means, squares] = [network2.zeros(), network2.zeros(), network2.zeros()];
  const [dz, size] = [new Float64Array(classes), sizeOf(inputs.shape)];
  const view = new Float32Array(size);
  const rest = pacer(pace, doing);
  let [steps, last] = [0, 0];
  for (let epoch = 0; epoch < training.epochs; epoch++) {
    const order = stream.permutation(inputs.rows);
    last = 0;
    for (let start = 0; start < inputs.rows; start += training.batchSize) {
      const rows = order.subarray(start, start + training.batchSize);
      const done = (epoch + start / inputs.rows) / training.epochs;
      await rest(done);
      gradient.fill(0);
      let total2 = 0;
      for (const row of rows) {
        let x = inputs.x.subarray(row * size, (row + 1) * size);
        if (training.views.length) {
          view.set(x);
          for (const change of training.views) change(view, inputs.shape, stream);
          x = view;
        }
        total2 += loss(network2.forward(x), targets, row * classes, dz);
        network2.backward(dz, gradient);
      }
      if (!Number.isFinite(total2)) {
        throw new Refusal(`training diverged: lower learning_rate (${training.learningRate})`);
      }
      last += total2 / inputs.rows;
      adam(theta, gradient, means, squares, ++steps, training.learningRate * training.schedule(done), rows.length);
    }
  }
  return last;
}
function adam(theta, sum, means, squares, t, rate, rows) {
  const step = rate / (1 - 0.9 ** t);
  const scale = 1 / Math.sqrt(1 - 0.999 ** t);
  for (let i = 0; i < theta.length; i++) {
    const g = sum[i] / rows;
    const mean2 = means[i] = 0.9 * means[i] + 0.1 * g;
    const square = squares[i] = 0.999 * squares[i] + 1e-3 * g * g;
    theta[i] -= step * mean2 / (Math.sqrt(square) * scale + 1e-8);
  }
}
async function predict(network2, inputs, pace = {}) {
  const size = sizeOf(inputs.shape);
  const p = new Float32Array(inputs.rows * network2.classes);
  const rest = pacer(pace, "predicting");
  for (let i = 0; i < inputs.rows; i++) {
    p.set(softmax(network2.forward(inputs.x.subarray(i * size, (i + 1) * size))), i * network2.classes);
    await rest(i / inputs.rows);
  }
  return p;
}
function oneHot2(y, classes) {
  const p = new Float32Array(y.length * classes);
  y.forEach((label, i) => p[i * classes + label] = 1);
  return p;
}
function scheduleOf(text) {
  const spec = parse(text);
  if (spec.name === "constant") return options(spec, {}, "schedule") && (() => 1);
  if (spec.name === "linear") return options(spec, {}, "schedule") && ((done) => 1 - done);
  if (spec.name === "cosine") {
    const { warmup } = options(spec, { warmup: 0 }, "schedule");
    return (t) => t < warmup ? t / warmup : (1 + Math.cos(Math.PI * (t - warmup) / (1 - warmup))) / 2;
  }
  throw new Refusal(`schedule: a phone cannot do '${spec.name}'; set schedule = 'constant'`);
}
function viewsOf(text) {
  return split(text, "|").flatMap((one) => {
    const spec = parse(one);
    if (spec.name === "none") return [];
    if (spec.name === "flip") return [flip];
    if (spec.name === "shift") {
      const { pixels } = options(spec, { pixels: 2 }, "augment");
      return [(x, shape, stream) => shift(x, shape, stream, pixels)];
    }
    throw new Refusal(`augment: a phone cannot do '${spec.name}'; set augment = 'none'`);
  });
}
function flip(x, shape, stream) {
  if (stream.uniform() >= 0.5) return;
  const width = shape[2];
  for (let row = 0; row < x.length; row += width) x.subarray(row, row + width).reverse();
}
function shift(x, shape, stream, pixels) {
  const [channels, height, width] = shape;
  const [down, right] = [stream.below(2 * pixels + 1) - pixels, stream.below(2 * pixels + 1) - pixels];
  const kept2 = x.slice();
  for (let c = 0; c < channels; c++) {
    for (let i = 0; i < height; i++) {
      for (let j = 0; j < width; j++) {
        const [a, b] = [i - down, j - right];
        const inside = a >= 0 && a < height && b >= 0 && b < width;
        x[(c * height + i) * width + j] = inside ? kept2[(c * height + a) * width + b] : 0;
      }
    }
  }
}

// src/config.ts
var FREE = ["output", "resume", "rounds", "deadline", "grace", "pooled", "record", "resolved"];
var SAMPLES_ONLY = ["uniform", "confidence", "entropy"];
function configOf(run, noise = 0) {
  if (run["resolved"] !== true) throw new Refusal("the run config is not complete: expected resolved = true");
  const text = (key) => given(run, key, "string");
  const number2 = (key) => given(run, key, "number");
  if (text("keys") !== "samples") throw new Refusal(`keys: a phone answers about samples only, got '${text("keys")}'`);
  if (text("attack") !== "none") throw new Refusal("attack: is for simulations; a phone has data of its own");
  chain(text("broadcast"), "broadcast");
  distillLoss(text("distill"));
  const dpSgd = protectionOf(text("protect"));
  const [expertise, evidence] = [expertiseOf(text("expertise")), evidenceOf(text("evidence"))];
  const [epsilon, delta, rounds, epochs] = [
    number2("epsilon"),
    number2("delta"),
    number2("rounds"),
    number2("local-epochs")
  ];
  if (dpSgd && evidence.name !== "none") {
    throw new Refusal(`evidence: '${evidence.name}' reads private data beside the model; set evidence = 'none'`);
  }
  if (dpSgd && !SAMPLES_ONLY.includes(expertise.name)) {
    throw new Refusal(
      `expertise: '${expertise.name}' reads private data, which dp_sgd does not cover; set expertise = 'uniform'`
    );
  }
  const fixed = Object.entries(run).filter(([key]) => !FREE.includes(key) || key === "rounds" && dpSgd !== null);
  return {
    identity: JSON.stringify(fixed.sort(([a], [b]) => a < b ? -1 : 1)),
    seed: number2("seed"),
    learner: text("learner"),
    expertise,
    evidence,
    release: chain(text("release"), "release"),
    training: {
      epochs,
      batchSize: number2("batch-size"),
      learningRate: number2("learning-rate"),
      schedule: scheduleOf(text("schedule")),
      views: viewsOf(text("augment"))
    },
    distill: text("distill"),
    feedbackEpochs: number2("feedback-epochs"),
    protection: dpSgd && spending(dpSgd, { epsilon, delta, rounds, epochs }, noise)
  };
}
var LEARNERS = ["cnn", "mlp", "linear"];
function learnerOf(config, key, shape) {
  const image = shape.length === 3 && Math.min(shape[1], shape[2]) >= 4;
  const mix = split(config.learner, ",");
  const turn = mix[Number(key % BigInt(mix.length))];
  const can = (text) => {
    const { name: name2 } = readable(text);
    return LEARNERS.includes(name2) && (name2 !== "cnn" || image);
  };
  return parse([turn, ...mix].find(can) ?? (image ? "cnn" : "mlp"));
}
function readable(text) {
  return /^[A-Za-z_]\w*(\(.*\))?$/s.test(text) ? parse(text) : { name: "", options: {} };
}
function given(run, key, type) {
  const value = run[key];
  if (typeof value !== type) throw new Refusal(`run config: '${key}' must be a ${type}, got ${value ?? "nothing"}`);
  return value;
}

// src/linear.ts
var CONSTANT = 1 / 3;
var RIDGE = 0.03;
async function whitened(transfer, dimensions, pace = {}) {
  const found = await componentsOf(transfer, dimensions, pace);
  const kept2 = found.variances.filter((variance) => variance > 1e-6 * found.variances[0]).length;
  const directions = found.directions.slice(0, kept2).map((direction, k) => {
    return direction.map((value) => value / Math.sqrt(found.variances[k] * kept2));
  });
  const components = { ...found, directions };
  const rows = await unitRows(components, transfer, pace);
  return { components, public: rows, inverse: inverted(moments(rows), rows.columns, RIDGE) };
}
async function unitRows(components, inputs, pace = {}) {
  const z = await projected(components, inputs, pace);
  const columns = z.columns + 1;
  const data = new Float32Array(inputs.rows * columns);
  for (let i = 0; i < inputs.rows; i++) {
    let squares = CONSTANT * CONSTANT;
    for (let j = 0; j < z.columns; j++) squares += z.data[i * z.columns + j] ** 2;
    const length = Math.sqrt(squares);
    for (let j = 0; j < z.columns; j++) data[i * columns + j] = z.data[i * z.columns + j] / length;
    data[i * columns + z.columns] = CONSTANT / length;
  }
  return { data, columns };
}
function descendPlainly(weights, v, p, classes, steps) {
  const n = count(v);
  const factor = inverted(moments(v), v.columns, 1e-4);
  let before = weights;
  let ahead = weights;
  for (let t = 0; t < steps; t++) {
    const gradient = new Float64Array(weights.length);
    for (let i = 0; i < n; i++) addGradient(gradient, v, i, errors(v, i, ahead, p, classes), 1 / n, classes);
    const move = product(factor, gradient, v.columns, classes);
    const now = ahead.map((value, j) => value - 2 * move[j]);
    const last = before;
    ahead = now.map((value, j) => value + t / (t + 3) * (value - last[j]));
    before = now;
  }
  return before;
}
async function descendPrivately(weights, v, mine, space, budget, classes, entropy, pace = {}) {
  const { rate, clip, examples, step, steps, noise } = budget;
  const rest = pacer(pace, "training with noise");
  for (let t = 0; t < steps; t++) {
    await rest(t / steps);
    const chosen = rate === 1 ? Int32Array.from(mine.y.keys()) : coins(entropy, mine.rows, rate);
    const total2 = linearSum(weights, v, mine.y, chosen, clip, classes);
    const draws = normals(entropy, total2.length);
    const move = product(
      space.inverse,
      total2.map((value, j) => value + noise * clip * draws[j]),
      v.columns,
      classes
    );
    const length = step * (1 - t / steps) * classes / (rate * examples);
    for (let j = 0; j < weights.length; j++) weights[j] -= length * move[j];
  }
  return eventOf(budget, steps);
}
function linearSum(weights, v, y, chosen, clip, classes) {
  const total2 = new Float64Array(weights.length);
  const label = new Float32Array(classes);
  for (const i of chosen) {
    const row = v.data.subarray(i * v.columns, (i + 1) * v.columns);
    if (!row.every(Number.isFinite)) continue;
    label.fill(0);
    label[y[i]] = 1;
    const error = errors(v, i, weights, label, classes, 0);
    const norm = Math.hypot(...error) * Math.hypot(...row);
    addGradient(total2, v, i, error, Math.min(1, clip * (1 - 1e-6) / Math.max(norm, 1e-30)), classes);
  }
  return total2;
}
function predictLinearly(weights, v, classes, temperature) {
  const p = new Float32Array(count(v) * classes);
  for (let i = 0; i < count(v); i++) p.set(softmax(logits(v, i, weights, classes), temperature), i * classes);
  return p;
}
function logits(v, i, weights, classes) {
  const z = new Float64Array(classes);
  for (let j = 0; j < v.columns; j++) {
    const value = v.data[i * v.columns + j];
    for (let c = 0; c < classes; c++) z[c] += value * weights[j * classes + c];
  }
  return z;
}
function errors(v, i, weights, p, classes, at = i * classes) {
  return softmax(logits(v, i, weights, classes)).map((value, c) => value - p[at + c]);
}
function addGradient(sum, v, i, error, factor, classes) {
  for (let j = 0; j < v.columns; j++) {
    const value = factor * v.data[i * v.columns + j];
    for (let c = 0; c < classes; c++) sum[j * classes + c] += value * error[c];
  }
}
function moments(v) {
  const [n, d] = [count(v), v.columns];
  const out = new Float64Array(d * d);
  for (let i = 0; i < n; i++) {
    for (let a = 0; a < d; a++) {
      const value = v.data[i * d + a] / n;
      for (let b = 0; b < d; b++) out[a * d + b] += value * v.data[i * d + b];
    }
  }
  return out;
}
function product(matrix, columns, d, classes) {
  const out = new Float64Array(columns.length);
  for (let a = 0; a < d; a++) {
    for (let b = 0; b < d; b++) {
      const value = matrix[a * d + b];
      for (let c = 0; c < classes; c++) out[a * classes + c] += value * columns[b * classes + c];
    }
  }
  return out;
}
function inverted(matrix, d, ridge) {
  let trace = 0;
  for (let a = 0; a < d; a++) trace += matrix[a * d + a];
  const left = matrix.map((value, at) => value + (at % (d + 1) === 0 ? ridge * trace / d : 0));
  const right = Float64Array.from({ length: d * d }, (_, at) => at % (d + 1) === 0 ? 1 : 0);
  for (let k = 0; k < d; k++) {
    const pivot = left[k * d + k];
    for (let j = 0; j < d; j++) {
      left[k * d + j] /= pivot;
      right[k * d + j] /= pivot;
    }
    for (let i = 0; i < d; i++) {
      const factor = left[i * d + k];
      if (i === k || factor === 0) continue;
      for (let j = 0; j < d; j++) {
        left[i * d + j] -= factor * left[k * d + j];
        right[i * d + j] -= factor * right[k * d + j];
      }
    }
  }
  return right;
}

// src/net.ts
var Dense = class {
  constructor(inputs, outputs, relu, alloc) {
    this.inputs = inputs;
    this.relu = relu;
    this.weights = (inputs + 1) * outputs;
    this.fan = inputs;
    this.out = new alloc(outputs);
    this.input = new alloc(0);
  }
  inputs;
  relu;
  weights;
  fan;
  out;
  input;
  forward(theta, at, input) {
    const { inputs, out } = this;
    this.input = input;
    const bias = at + inputs * out.length;
    for (let o = 0; o < out.length; o++) {
      let s0 = theta[bias + o];
      let s1 = 0;
      let w = at + o * inputs;
      let i = 0;
      for (; i + 1 < inputs; i += 2, w += 2) {
        s0 += theta[w] * input[i];
        s1 += theta[w + 1] * input[i + 1];
      }
      if (i < inputs) s0 += theta[w] * input[i];
      out[o] = this.relu && s0 + s1 < 0 ? 0 : s0 + s1;
    }
  }
  backward(theta, at, dout, gradient, dinput) {
    const { inputs, out, input } = this;
    const bias = at + inputs * out.length;
    dinput?.fill(0);
    for (let o = 0; o < out.length; o++) {
      const d = this.relu && !(out[o] > 0) ? 0 : dout[o];
      if (d === 0) continue;
      gradient[bias + o] += d;
      const w = at + o * inputs;
      for (let i = 0; i < inputs; i++) gradient[w + i] += d * input[i];
      if (dinput) for (let i = 0; i < inputs; i++) dinput[i] += d * theta[w + i];
    }
  }
};
var Convolution = class {
  constructor(inputs, height, width, outputs, alloc) {
    this.inputs = inputs;
    this.height = height;
    this.width = width;
    this.outputs = outputs;
    this.weights = (9 * inputs + 1) * outputs;
    this.fan = 9 * inputs;
    const pooled = (height >> 1) * (width >> 1);
    this.out = new alloc(outputs * pooled);
    this.padded = new Float64Array(inputs * (height + 2) * (width + 2));
    this.back = new Float64Array(this.padded.length);
    this.plane = new Float64Array(4 * pooled);
    this.winner = new Int32Array(outputs * pooled);
    this.place = new Int32Array(pooled);
    this.slope = new Float64Array(pooled);
  }
  inputs;
  height;
  width;
  outputs;
  weights;
  fan;
  out;
  padded;
  back;
  plane;
  winner;
  place;
  slope;
  forward(theta, at, input) {
    const { inputs, height, width, outputs, padded, plane } = this;
    const rows = (height >> 1) * 2;
    const columns = (width >> 1) * 2;
    const stride = width + 2;
    for (let c = 0; c < inputs; c++) {
      for (let y = 0; y < height; y++) {
        const to = (c * (height + 2) + y + 1) * stride + 1;
        const from = (c * height + y) * width;
        for (let x = 0; x < width; x++) padded[to + x] = input[from + x];
      }
    }
    for (let o = 0; o < outputs; o++) {
      plane.fill(theta[at + 9 * inputs * outputs + o]);
      for (let c = 0; c < inputs; c++) {
        const w = at + (o * inputs + c) * 9;
        const w0 = theta[w];
        const w1 = theta[w + 1];
        const w2 = theta[w + 2];
        const w3 = theta[w + 3];
        const w4 = theta[w + 4];
        const w5 = theta[w + 5];
        const w6 = theta[w + 6];
        const w7 = theta[w + 7];
        const w8 = theta[w + 8];
        for (let y = 0; y < rows; y++) {
          let a = (c * (height + 2) + y) * stride + 2;
          let b = a + stride;
          let d = b + stride;
          let a0 = padded[a - 2];
          let a1 = padded[a - 1];
          let b0 = padded[b - 2];
          let b1 = padded[b - 1];
          let d0 = padded[d - 2];
          let d1 = padded[d - 1];
          for (let to = y * columns, end = to + columns; to < end; to++, a++, b++, d++) {
            const a2 = padded[a];
            const b2 = padded[b];
            const d2 = padded[d];
            plane[to] += w0 * a0 + w1 * a1 + w2 * a2 + w3 * b0 + w4 * b1 + w5 * b2 + w6 * d0 + w7 * d1 + w8 * d2;
            a0 = a1;
            a1 = a2;
            b0 = b1;
            b1 = b2;
            d0 = d1;
            d1 = d2;
          }
        }
      }
      this.pool(o, rows >> 1, columns >> 1);
    }
  }
  /** Write the largest of each 2x2 places of the plane, and remember where in the padded input it was looked at. */
  pool(o, rows, columns) {
    const { plane, width } = this;
    for (let y = 0; y < rows; y++) {
      for (let x = 0; x < columns; x++) {
        const at = 4 * y * columns + 2 * x;
        const under = at + 2 * columns;
        let best = at;
        if (plane[at + 1] > plane[best]) best = at + 1;
        if (plane[under] > plane[best]) best = under;
        if (plane[under + 1] > plane[best]) best = under + 1;
        const most = plane[best];
        const to = (o * rows + y) * columns + x;
        this.out[to] = most > 0 ? most : 0;
        const down = Math.floor(best / (2 * columns));
        this.winner[to] = down * (width + 2) + best - down * 2 * columns;
      }
    }
  }
  backward(theta, at, dout, gradient, dinput) {
    const { inputs, height, width, outputs, padded, back, place, slope } = this;
    const stride = width + 2;
    const pooled = place.length;
    if (dinput) back.fill(0);
    for (let o = 0; o < outputs; o++) {
      let live = 0;
      let bias = 0;
      for (let i = o * pooled; i < (o + 1) * pooled; i++) {
        const d = dout[i];
        if (d === 0 || !(this.out[i] > 0)) continue;
        place[live] = this.winner[i];
        slope[live++] = d;
        bias += d;
      }
      gradient[at + 9 * inputs * outputs + o] += bias;
      for (let c = 0; c < inputs; c++) {
        const w = at + (o * inputs + c) * 9;
        const start = c * (height + 2) * stride;
        let g0 = 0;
        let g1 = 0;
        let g2 = 0;
        let g3 = 0;
        let g4 = 0;
        let g5 = 0;
        let g6 = 0;
        let g7 = 0;
        let g8 = 0;
        for (let i = 0; i < live; i++) {
          const d = slope[i];
          const a = start + place[i];
          const b = a + stride;
          const e = b + stride;
          g0 += d * padded[a];
          g1 += d * padded[a + 1];
          g2 += d * padded[a + 2];
          g3 += d * padded[b];
          g4 += d * padded[b + 1];
          g5 += d * padded[b + 2];
          g6 += d * padded[e];
          g7 += d * padded[e + 1];
          g8 += d * padded[e + 2];
        }
        gradient[w] += g0;
        gradient[w + 1] += g1;
        gradient[w + 2] += g2;
        gradient[w + 3] += g3;
        gradient[w + 4] += g4;
        gradient[w + 5] += g5;
        gradient[w + 6] += g6;
        gradient[w + 7] += g7;
        gradient[w + 8] += g8;
        if (!dinput) continue;
        const w0 = theta[w];
        const w1 = theta[w + 1];
        const w2 = theta[w + 2];
        const w3 = theta[w + 3];
        const w4 = theta[w + 4];
        const w5 = theta[w + 5];
        const w6 = theta[w + 6];
        const w7 = theta[w + 7];
        const w8 = theta[w + 8];
        for (let i = 0; i < live; i++) {
          const d = slope[i];
          const a = start + place[i];
          const b = a + stride;
          const e = b + stride;
          back[a] += d * w0;
          back[a + 1] += d * w1;
          back[a + 2] += d * w2;
          back[b] += d * w3;
          back[b + 1] += d * w4;
          back[b + 2] += d * w5;
          back[e] += d * w6;
          back[e + 1] += d * w7;
          back[e + 2] += d * w8;
        }
      }
    }
    if (!dinput) return;
    for (let c = 0; c < inputs; c++) {
      for (let y = 0; y < height; y++) {
        const from = (c * (height + 2) + y + 1) * stride + 1;
        const to = (c * height + y) * width;
        for (let x = 0; x < width; x++) dinput[to + x] = back[from + x];
      }
    }
  }
};
var Network = class {
  constructor(layers, classes, alloc) {
    this.classes = classes;
    this.alloc = alloc;
    this.layers = layers;
    let size = 0;
    for (const layer of layers) {
      this.starts.push(size);
      size += layer.weights;
    }
    this.theta = new alloc(size);
    this.slopes = layers.slice(0, -1).map((layer) => new alloc(layer.out.length));
  }
  classes;
  alloc;
  theta;
  layers;
  starts = [];
  slopes;
  /** Draw weights as torch does: uniform within one over the root of how many inputs a unit has. */
  initialize(stream) {
    this.layers.forEach((layer, l) => {
      const bound = 1 / Math.sqrt(layer.fan);
      for (let i = 0; i < layer.weights; i++) this.theta[this.starts[l] + i] = (2 * stream.uniform() - 1) * bound;
    });
    return this;
  }
  /** Return the logits (classes,) of one input; the array is used again by the next call. */
  forward(input) {
    let value = input;
    this.layers.forEach((layer, l) => {
      layer.forward(this.theta, this.starts[l], value);
      value = layer.out;
    });
    return value;
  }
  /** Add the gradient at the last input to `gradient`, where `dz` (classes,) is that of its logits. */
  backward(dz, gradient) {
    let d = dz;
    for (let l = this.layers.length - 1; l >= 0; l--) {
      const below = l > 0 ? this.slopes[l - 1] : null;
      this.layers[l].backward(this.theta, this.starts[l], d, gradient, below);
      if (below) d = below;
    }
  }
  /** An array as long as all weights, zero. */
  zeros() {
    return new this.alloc(this.theta.length);
  }
};
function cnn(shape, classes, width = 16, hidden = 64, alloc = Float32Array) {
  if (shape.length !== 3 || Math.min(shape[1], shape[2]) < 4) {
    throw new Refusal(`learner cnn needs images (channels, height, width) of at least 4x4, got (${shape.join(", ")})`);
  }
  const [channels, high, wide] = shape;
  const first = new Convolution(channels, high, wide, width, alloc);
  const second = new Convolution(width, high >> 1, wide >> 1, 2 * width, alloc);
  const flat = 2 * width * (high >> 2) * (wide >> 2);
  return new Network(
    [first, second, new Dense(flat, hidden, true, alloc), new Dense(hidden, classes, false, alloc)],
    classes,
    alloc
  );
}
function mlp(shape, classes, hidden = 64, alloc = Float32Array) {
  return new Network(
    [new Dense(sizeOf(shape), hidden, true, alloc), new Dense(hidden, classes, false, alloc)],
    classes,
    alloc
  );
}

// src/models.ts
async function modelOf(spec, transfer, classes, config, key, pace = {}) {
  if (spec.name === "linear") {
    const given2 = options(spec, { features: "shapes", dimensions: 100, temperature: 1 }, "learner");
    if (given2.features !== "shapes")
      throw new Refusal(`learner: a phone knows no features '${given2.features}', only shapes`);
    aboveZero("learner", "linear", { dimensions: given2.dimensions, temperature: given2.temperature });
    return linear(await whitened(transfer, given2.dimensions, pace), classes, config, given2.temperature);
  }
  const sizes = options(spec, spec.name === "cnn" ? { width: 16, hidden: 64 } : { width: 1, hidden: 64 }, "learner");
  aboveZero("learner", spec.name, sizes);
  const { width, hidden } = sizes;
  const made = spec.name === "cnn" ? cnn(transfer.shape, classes, width, hidden) : mlp(transfer.shape, classes, hidden);
  return network(made.initialize(new Stream(config.seed, "client", key, "init")), config);
}
function network(net, config) {
  const { training, distill, feedbackEpochs } = config;
  return {
    size: net.theta.length,
    async fit(mine, stream, pace) {
      const doing = "training on this phone's images";
      await learn(net, mine, oneHot2(mine.y, net.classes), crossEntropy, training, stream, pace, doing);
    },
    fitPrivately: (mine, budget, entropy, pace) => descend(net, mine, budget, entropy, pace),
    async distill(inputs, p, stream, pace) {
      const settings = { ...training, epochs: feedbackEpochs };
      await learn(net, inputs, p, distillLoss(distill), settings, stream, pace, "learning what the others know");
    },
    predict: (inputs, pace) => predict(net, inputs, pace),
    state: () => Float32Array.from(net.theta),
    load: (state) => fill(net.theta, state)
  };
}
function linear(space, classes, config, temperature) {
  let weights = new Float64Array(space.public.columns * classes);
  const rows = (inputs, pace) => unitRows(space.components, inputs, pace);
  return {
    size: weights.length,
    async fit(mine, _, pace) {
      const p = oneHot2(mine.y, classes);
      if (mine.rows) weights = descendPlainly(weights, await rows(mine, pace), p, classes, config.training.epochs);
    },
    async fitPrivately(mine, budget, entropy, pace) {
      return descendPrivately(weights, await rows(mine, pace), mine, space, budget, classes, entropy, pace);
    },
    async distill(inputs, p, _, pace) {
      if (inputs.rows) weights = descendPlainly(weights, await rows(inputs, pace), p, classes, config.feedbackEpochs);
    },
    predict: async (inputs, pace) => predictLinearly(weights, await rows(inputs, pace), classes, temperature),
    state: () => Float32Array.from(weights),
    load: (state) => fill(weights, state)
  };
}
function fill(weights, state) {
  if (state.length !== weights.length) {
    throw new Refusal(`this model has ${state.length} weights, expected ${weights.length}`);
  }
  weights.set(state);
}

// src/learner.ts
async function answer(frame, run, site, state, ledger, around2 = {}) {
  try {
    const config = configOf(run, around2.noise);
    checkSite(site, config);
    return await answered(frame, config, site, state, ledger, around2);
  } catch (error) {
    if (error instanceof Cancelled) throw error;
    return { refusal: error instanceof Refusal ? error.message.slice(0, 500) : `unexpected ${error.name}` };
  }
}
async function answered(frame, config, site, before, ledger, around2) {
  const { key, mine, classes, transfer } = site;
  const digest = hex(await sha256(frame));
  const query = decodeQuery(frame, site.fingerprint, transfer.rows, classes);
  const sent = await ledger.replay(nameOf2(config, site.run, query.round, digest), digest);
  if (sent) return { frame: sent, state: null };
  const known = recalled(before, config, query.round, digest);
  const spec = learnerOf(config, key, transfer.shape);
  const model = await modelOf(spec, transfer, classes, config, key, around2);
  const learner = JSON.stringify(spec);
  if (known?.learner === learner) model.load(known.model);
  const charge = await begin(ledger, config, site.run, query.round, digest);
  const stream = (purpose) => new Stream(config.seed, "client", key, "round", query.round, purpose);
  await listen(model, query, transfer, stream("feedback"), around2);
  let event = { kind: "no_op" };
  if (charge.trains && config.protection) {
    event = await model.fitPrivately(mine, config.protection, around2.entropy ?? system, around2);
  } else if (charge.trains) {
    await model.fit(mine, stream("fit"), around2);
    event = { kind: "non_private" };
  }
  const asked = pickInputs(transfer, query.rows);
  const p = await model.predict(asked, around2);
  if (!p.every(Number.isFinite)) throw new Refusal("the model says NaN: training diverged; lower learning_rate");
  const data = hex(await sha256(bytesOf(mine.x), bytesOf(mine.y)));
  const own = await opinions(config, site, known?.data === data ? known : null, around2);
  const w = own.expertise ? pickRows(own.expertise, query.rows, 1) : weigh(config.expertise, p, classes);
  const told = own.evidence ? beside(p, pickRows(own.evidence, query.rows, classes), classes) : p;
  const plain = { p: told, w, classes, encoding: "float32", weightBits: 0 };
  const release = encodeRelease(prepare(config.release, plain, stream("release")), event, query, key);
  const state = {
    identity: config.identity,
    round: query.round,
    query: digest,
    model: model.state(),
    learner,
    data,
    ...own,
    ledger: ledger.head
  };
  await around2.save?.(state);
  await charge.commit(release);
  return { frame: release, state };
}
async function listen(model, query, transfer, stream, pace) {
  if (query.feedback === null || query.feedback.rows.length === 0) return;
  await model.distill(pickInputs(transfer, query.feedback.rows), query.feedback.p, stream, pace);
}
async function opinions(config, site, known, around2) {
  const { mine, classes, transfer } = site;
  const where = around2.surroundings ?? new Surroundings(transfer);
  let [expertise, evidence] = [known?.expertise ?? null, known?.evidence ?? null];
  if (STATIC.includes(config.expertise.name)) {
    expertise ??= await density(config.expertise, where, mine, transfer.rows, around2);
  }
  if (config.evidence.name === "neighbors") {
    evidence ??= await neighbors(config.evidence, where, mine, classes, around2);
  }
  return { expertise, evidence };
}
function nameOf2(config, run, round, digest) {
  return `${run}/round/${round}${config.protection ? "" : `/${digest.slice(0, 16)}`}`;
}
async function begin(ledger, config, run, round, digest) {
  const id = nameOf2(config, run, round, digest);
  const charge = { trains: true, commit: (frame) => ledger.commit(id, frame) };
  if (!config.protection) {
    if (ledger.find(id)) ledger.resume(id);
    else await ledger.reserve(id, { kind: "non_private" }, run, digest);
    return charge;
  }
  await settle(ledger, config, config.protection, run, round);
  if (ledger.find(id)) return { trains: false, commit: async () => {
  } };
  await ledger.reserve(id, { kind: "no_op" }, run, digest);
  return charge;
}
async function settle(ledger, config, budget, run, round) {
  if (!ledger.budget) throw new Refusal("a run with dp_sgd needs a ledger with a budget: set one on this phone");
  const { steps, rounds } = budget;
  if (round > rounds) throw new Refusal(`round ${round} is not one of the ${rounds} that the budget was spread over`);
  const settled2 = hex(await sha256(config.identity));
  const [id, event] = [`${run}/plan/0`, eventOf(budget, steps * rounds)];
  const paid = ledger.find(id);
  if (paid === void 0) {
    await ledger.reserve(id, event, run, settled2);
    await ledger.commit(id, new Uint8Array(0));
  } else if (paid.digest !== settled2 || JSON.stringify(paid.event) !== JSON.stringify(event)) {
    throw new Refusal(`run ${run} was begun with other settings, for which another plan was paid`);
  }
}
function recalled(state, config, round, digest) {
  if (state === null || state.identity !== config.identity) return null;
  const past = state.query !== digest && state.round >= round;
  return past && !config.protection ? null : state;
}
async function fingerprintOf(inputs) {
  return hex(await sha256(`<f4 (${[inputs.rows, ...inputs.shape].join(", ")})`, bytesOf(inputs.x)));
}
function checkSite({ mine, classes, transfer }, config) {
  if (mine.x.length !== mine.rows * sizeOf(mine.shape) || mine.y.length !== mine.rows) {
    throw new Refusal("this phone's images and labels do not fit together");
  }
  if (mine.shape.join() !== transfer.shape.join()) {
    throw new Refusal(`this phone's images are (${mine.shape.join(", ")}), the run's (${transfer.shape.join(", ")})`);
  }
  if (config.training.views.length && mine.shape.length !== 3) {
    throw new Refusal(`augment: needs images (channels, height, width), got inputs (${mine.shape.join(", ")})`);
  }
  if (config.protection) return;
  if (mine.rows === 0) throw new Refusal("this phone has no images of its own yet");
  if (!mine.y.every((label) => label >= 0 && label < classes))
    throw new Refusal("a label is not one of the run's classes");
  if (!mine.x.every(Number.isFinite)) throw new Refusal("an image of this phone holds NaN or infinity");
}
function pickInputs(inputs, rows) {
  return { x: pickRows(inputs.x, rows, sizeOf(inputs.shape)), rows: rows.length, shape: inputs.shape };
}
function pickRows(values, rows, size) {
  const picked = new Float32Array(rows.length * size);
  rows.forEach((row, i) => picked.set(values.subarray(row * size, (row + 1) * size), i * size));
  return picked;
}
function bytesOf(values) {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

// src/ledger.ts
var START = "0".repeat(64);
var NAME = /^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}$/;
var BROKEN = "the ledger of this phone cannot be trusted, nothing is released:";
var Ledger = class _Ledger {
  constructor(store, budget, clock, place) {
    this.store = store;
    this.budget = budget;
    this.clock = clock;
    this.place = place;
  }
  store;
  budget;
  clock;
  place;
  reservations = /* @__PURE__ */ new Map();
  underWay = /* @__PURE__ */ new Set();
  last = 0;
  sound = true;
  /**
   * Open the ledger in `store`, or begin it. `owner` names whose it is, `seen` is a head that was kept elsewhere: a
   * ledger that does not contain it was put back. The budget is what it was begun with; another one is refused.
   */
  static async open(store, given2) {
    const { records, head } = await store.read();
    const ledger = new _Ledger(store, given2.budget, given2.clock ?? (() => Date.now() / 1e3), { count: 0, hash: START });
    for (const record of records) await ledger.replayRecord(record, given2.owner);
    const { count: count2, hash } = ledger.place;
    if ((head?.count ?? 0) !== count2 || head !== null && head.hash !== hash) {
      throw new Refusal(`${BROKEN} it has ${count2} records, expected ${head?.count ?? 0}`);
    }
    if (given2.seen && await prefix(records, given2.seen.count) !== given2.seen.hash) {
      throw new Refusal(`${BROKEN} it is older than it was, or another one`);
    }
    if (count2 === 0) {
      const { budget, owner } = given2;
      const all = budget && { ...budget, per_run: null, per_period: null, period_days: 30 };
      const about = { version: 1, fingerprint: name("owner", owner), unit: "example", neighbors: "add_remove" };
      await ledger.put({ kind: "open", ...about, budget: all });
    }
    return ledger;
  }
  /** How long the ledger is and its last hash: keep it with a model, and give it to `open` as `seen`. */
  get head() {
    return { ...this.place };
  }
  /** Return what was reserved under this id, whether or not bytes left. */
  find(id) {
    return this.reservations.get(id);
  }
  /** All that was reserved, in order, for whoever wants to read it. */
  entries() {
    return [...this.reservations];
  }
  /** Spend `event` on one query: it counts from when this returns, whatever comes after. */
  async reserve(id, event, run, digest) {
    for (const [what, text] of Object.entries({ id, run, digest })) name(what, text);
    if (this.reservations.has(id)) throw new Refusal(`release ${id} was made already`);
    const spent = [...this.reservations.values()].map((entry) => entry.event);
    if (this.budget && !fits(this.budget.epsilon, this.budget.delta, spent, event)) {
      throw new Refusal("the privacy budget of this client does not allow this release");
    }
    await this.put({ kind: "reserve", release_id: id, run, query_digest: digest, event: eventBody(event) });
    this.underWay.add(id);
  }
  /** Go on with what was reserved and never committed: only where nothing was promised, so nothing is drawn twice. */
  resume(id) {
    const found = this.reservations.get(id);
    if (found?.event.kind !== "non_private" || found.payload !== null) {
      throw new Refusal(`release ${id} was lost in a crash, and stays spent`);
    }
    this.underWay.add(id);
  }
  /** Keep the bytes of a release, after which they may leave. */
  async commit(id, bytes) {
    if (!this.underWay.has(id)) throw new Refusal(`release ${id} is not under way: reserve it first, commit it once`);
    const payload = hex(await sha256(bytes));
    await this.put({ kind: "commit", release_id: id, payload }, { id, bytes });
    this.underWay.delete(id);
  }
  /** Return the very bytes that answered this query before; null if the id is new or its answer was lost. */
  async replay(id, digest) {
    const found = this.reservations.get(id);
    if (found === void 0 || found.payload === null) return null;
    if (found.digest !== digest) throw new Refusal(`release ${id} answered another query; one id stands for one query`);
    const bytes = await this.store.payload(id);
    if (bytes === null || hex(await sha256(bytes)) !== found.payload) {
      throw new Refusal(`the bytes of release ${id} are missing or altered: they cannot be sent again`);
    }
    return bytes;
  }
  async put(body, payload) {
    if (!this.sound) throw new Refusal("the ledger could not be written: load the page again");
    const now = Math.max(this.clock(), this.last);
    const timed = { ...body, time: now };
    const hash = await link(this.place.hash, timed);
    const head = { count: this.place.count + 1, hash };
    this.sound = false;
    try {
      await this.store.append(head.count, canonical({ body: timed, hash }), head, payload);
    } catch (error) {
      const why = error instanceof Error ? error.name : "unknown error";
      throw new Refusal(`the ledger could not be written (${why}); nothing is released`);
    }
    this.sound = true;
    this.place = head;
    this.add(timed);
  }
  async replayRecord(record, owner) {
    const number2 = this.place.count + 1;
    let found;
    try {
      found = JSON.parse(record);
      if (found.hash !== await link(this.place.hash, found.body)) throw new Error();
      if (!(Number(found.body["time"]) >= this.last) || found.body["kind"] === "open" !== (number2 === 1))
        throw new Error();
      this.add(found.body);
    } catch {
      throw new Refusal(`${BROKEN} record ${number2} does not continue the chain`);
    }
    this.place = { count: number2, hash: found.hash };
    if (number2 > 1) return;
    const { fingerprint, budget } = found.body;
    if (fingerprint !== owner) throw new Refusal(`this ledger is of ${fingerprint}, got ${owner}`);
    if (budget?.epsilon !== this.budget?.epsilon || budget?.delta !== this.budget?.delta) {
      const say = (one) => one ? `epsilon ${one.epsilon}, delta ${one.delta}` : "no budget";
      throw new Refusal(`this phone's ledger is under ${say(budget)}, got ${say(this.budget)}`);
    }
  }
  add(body) {
    this.last = Number(body["time"]);
    const id = String(body["release_id"]);
    if (body["kind"] === "reserve") {
      if (this.reservations.has(id)) throw new Error();
      const [run, digest] = [String(body["run"]), String(body["query_digest"])];
      this.reservations.set(id, { event: eventIn(body["event"]), run, digest, time: this.last, payload: null });
    } else if (body["kind"] === "commit") {
      const found = this.reservations.get(id);
      if (found === void 0 || found.payload !== null) throw new Error();
      found.payload = String(body["payload"]);
    } else if (body["kind"] !== "open") throw new Error();
  }
};
function memoryStore() {
  const records = [];
  const payloads = /* @__PURE__ */ new Map();
  let head = null;
  return {
    records,
    read: async () => ({ records: [...records], head }),
    append: async (number2, record, now, payload) => {
      if (number2 !== records.length + 1) throw new Error("taken");
      records.push(record);
      if (payload) payloads.set(payload.id, payload.bytes.slice());
      head = now;
    },
    payload: async (id) => payloads.get(id) ?? null
  };
}
function canonical(value) {
  if (typeof value === "number") return number(value);
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const entries = Object.entries(value).sort(([a], [b]) => a < b ? -1 : 1);
  return `{${entries.map(([key, one]) => `${JSON.stringify(key)}:${canonical(one)}`).join(",")}}`;
}
function number(value) {
  if (!Number.isFinite(value)) throw new Refusal(`a record cannot hold ${value}`);
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 2 ** 53) return String(value);
  const text = size < 1e-4 || size >= 1e16 ? value.toExponential() : String(value);
  return text.replace(/e([+-])(\d)$/, "e$10$2");
}
async function link(before, body) {
  return hex(await sha256(before, canonical(body)));
}
async function prefix(records, count2) {
  if (count2 === 0) return START;
  return records.length < count2 ? "" : JSON.parse(records[count2 - 1]).hash;
}
function name(what, text) {
  if (!NAME.test(text))
    throw new Refusal(`${what} must be 1 to 200 letters, digits or ._:/@+-, got '${text.slice(0, 40)}'`);
  return text;
}
var CODES2 = { non_private: 0, no_op: 1, sampled_gaussian: 3 };
function eventBody(event) {
  const code = CODES2[event.kind];
  if (event.kind !== "sampled_gaussian") return { code };
  return { code, rate: event.rate, noise_multiplier: event.noise, count: event.count, fixed: false };
}
function eventIn(body) {
  const { code, rate, noise_multiplier, count: count2 } = body;
  if (code === 1) return { kind: "no_op" };
  if (code !== 3) return { kind: "non_private" };
  return { kind: "sampled_gaussian", rate, noise: noise_multiplier, count: count2 };
}

// src/storage.ts
async function openStore(name2) {
  const opening = indexedDB.open(name2, 1);
  opening.onupgradeneeded = () => {
    for (const part of ["records", "payloads", "head"]) opening.result.createObjectStore(part);
  };
  const database = await settled(opening);
  return {
    async read() {
      const reading = database.transaction(["records", "head"], "readonly");
      const records = settled(reading.objectStore("records").getAll());
      const head = settled(reading.objectStore("head").get("head"));
      return { records: await records, head: await head ?? null };
    },
    async append(number2, record, head, payload) {
      const writing = database.transaction(["records", "payloads", "head"], "readwrite", { durability: "strict" });
      writing.objectStore("records").add(record, number2);
      writing.objectStore("head").put(head, "head");
      if (payload) writing.objectStore("payloads").put(payload.bytes.slice(), payload.id);
      await new Promise((resolve, reject) => {
        writing.oncomplete = () => resolve();
        writing.onabort = () => reject(writing.error ?? new Error("aborted"));
      });
    },
    async payload(id) {
      const found = database.transaction("payloads", "readonly").objectStore("payloads").get(id);
      return await settled(found) ?? null;
    }
  };
}
function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error("failed"));
  });
}
export {
  CODES,
  Cancelled,
  FLAGS,
  LEARNERS,
  Ledger,
  NONE,
  Network,
  ORDERS,
  QUERY,
  RELEASE,
  Reader,
  Refusal,
  SIDE,
  STATIC,
  STEPS,
  Stream,
  Surroundings,
  VERSION,
  Writer,
  aboveZero,
  answer,
  argmax,
  around,
  beside,
  calibrated,
  canonical,
  chain,
  clippedSum,
  cnn,
  coins,
  componentsOf,
  configOf,
  count,
  crc32,
  crossEntropy,
  decodeQuery,
  density,
  descend,
  descendPlainly,
  descendPrivately,
  distillLoss,
  encodeRelease,
  epsilonOf,
  eventOf,
  evidenceOf,
  expertiseOf,
  featuresOf,
  fingerprintOf,
  fits,
  fromHalf,
  hex,
  intrinsicDimension,
  labelBits,
  leading,
  learn,
  learnerOf,
  linearSum,
  meanDigamma,
  memoryStore,
  mlp,
  modelOf,
  nameOf,
  nearest,
  neighbors,
  normals,
  oneHot2 as oneHot,
  openStore,
  options,
  pacer,
  pack,
  packBits,
  packWeights,
  parse,
  pcg64,
  pick,
  predict,
  predictLinearly,
  prepare,
  projected,
  protectionOf,
  rdp,
  read,
  rint,
  sample,
  scheduleOf,
  sha256,
  shapes,
  simplexGrid,
  sizeOf,
  softmax,
  spaceOf,
  spending,
  split,
  system,
  toHalf,
  total,
  unitRows,
  unitsOf,
  unpack,
  unpackBits,
  unpackRows,
  viewsOf,
  weigh,
  weightLevels,
  weightsAt,
  whitened,
  write
};
