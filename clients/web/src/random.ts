/** Randomness: what protects comes from the system, what only shuffles from a seed that makes it repeatable. */

/** A source of what a guarantee leans on. `private` is false where somebody could draw the same again. */
export interface Entropy {
  readonly private: boolean;
  /** Uniform numbers of 53 bits in [0, 1). */
  uniforms(count: number): Float64Array;
}

/** The operating system's secure generator, for every bit. */
export const system: Entropy = {
  private: true,
  uniforms(count) {
    const words = new Uint32Array(2 * count);
    // The call takes at most 65536 bytes.
    for (let at = 0; at < words.length; at += 16384) crypto.getRandomValues(words.subarray(at, at + 16384));
    const found = new Float64Array(count);
    for (let i = 0; i < count; i++) found[i] = ((words[2 * i]! >>> 5) * 67108864 + (words[2 * i + 1]! >>> 6)) / 2 ** 53;
    return found;
  },
};

/** Standard normal numbers by Box and Muller, of 53 bits each; none is beyond 8.6. */
export function normals(entropy: Entropy, count: number): Float64Array {
  const half = Math.ceil(count / 2);
  const u = entropy.uniforms(2 * half);
  const found = new Float64Array(2 * half);
  for (let i = 0; i < half; i++) {
    const radius = Math.sqrt(-2 * Math.log(u[i]! + 2 ** -53)); // of a number in (0, 1]
    const angle = 2 * Math.PI * u[half + i]!;
    found[i] = radius * Math.cos(angle);
    found[half + i] = radius * Math.sin(angle);
  }
  return found.subarray(0, count);
}

/** The places among `count` that a coin each with probability `rate` (rounded down to 53 bits) chose, in order. */
export function coins(entropy: Entropy, count: number, rate: number): Int32Array {
  const u = entropy.uniforms(count);
  const bound = Math.floor(rate * 2 ** 53) / 2 ** 53;
  return Int32Array.from(Array.from(u.keys()).filter((i) => u[i]! < bound));
}

/** A small fast generator (sfc32) for shuffles and first weights: repeatable, and good for nothing secret. */
export class Stream {
  private a: number;
  private b: number;
  private c: number;
  private counter = 1;

  /** Equal names give equal draws. */
  constructor(...name: (string | number | bigint)[]) {
    [this.a, this.b, this.c] = mixed(JSON.stringify(name.map(String)));
    for (let i = 0; i < 15; i++) this.word();
  }

  /** The next 32 bits. */
  word(): number {
    const sum = (this.a + this.b + this.counter) | 0;
    this.counter = (this.counter + 1) | 0;
    this.a = this.b ^ (this.b >>> 9);
    this.b = (this.c + (this.c << 3)) | 0;
    this.c = (((this.c << 21) | (this.c >>> 11)) + sum) | 0;
    return sum >>> 0;
  }

  /** The next number in [0, 1). */
  uniform(): number {
    return ((this.word() >>> 5) * 67108864 + (this.word() >>> 6)) / 2 ** 53;
  }

  /** A whole number below `bound`. */
  below(bound: number): number {
    return Math.floor(this.uniform() * bound);
  }

  /** The numbers 0..count - 1 in random order. */
  permutation(count: number): Int32Array {
    const order = Int32Array.from({ length: count }, (_, i) => i);
    for (let i = count - 1; i > 0; i--) {
      const j = this.below(i + 1);
      const kept = order[i]!;
      order[i] = order[j]!;
      order[j] = kept;
    }
    return order;
  }
}

/** The SHA-256 of bytes or text. */
export async function sha256(...parts: (Uint8Array | string)[]): Promise<Uint8Array> {
  const bytes = parts.map((part) => (typeof part === "string" ? new TextEncoder().encode(part) : part));
  const whole = new Uint8Array(bytes.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of bytes) {
    whole.set(part, at);
    at += part.length;
  }
  return new Uint8Array(await crypto.subtle.digest("SHA-256", whole));
}

/** Bytes as lower-case hex. */
export function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * `most` of `rows` row numbers, or all, sorted: the ones that fedkd/expertise/space.py takes on every machine.
 *
 * So a phone needs numpy's PCG64 and the way it is seeded, here and nowhere else.
 */
export async function sample(rows: number, most: number): Promise<Int32Array> {
  if (rows <= most) return Int32Array.from({ length: rows }, (_, i) => i);
  const digest = await sha256(`(0, 'sample of rows', ${rows})`);
  const draw = pcg64(new DataView(digest.buffer).getBigUint64(0, true));
  const u = Float64Array.from({ length: rows }, draw);
  const order = Array.from(u.keys()).sort((i, j) => u[i]! - u[j]! || i - j);
  return Int32Array.from(order.slice(0, most)).sort();
}

/** numpy's `Generator(PCG64(seed)).random` (O'Neill, 2014). */
export function pcg64(seed: bigint): () => number {
  const mask = (1n << 128n) - 1n;
  const multiplier = 0x2360ed051fc65da44385df649fccf645n;
  const [high, low, above, below] = seedSequence(seed) as [bigint, bigint, bigint, bigint];
  const increment = ((((above << 64n) | below) << 1n) | 1n) & mask;
  let state = increment;
  const step = () => (state = (state * multiplier + increment) & mask);
  state = (state + ((high << 64n) | low)) & mask;
  step();
  return () => {
    step();
    const folded = ((state >> 64n) ^ state) & 0xffffffffffffffffn;
    const turn = state >> 122n;
    const word = ((folded >> turn) | (folded << ((64n - turn) & 63n))) & 0xffffffffffffffffn;
    return Number(word >> 11n) / 2 ** 53;
  };
}

/** numpy's `SeedSequence(seed).generate_state(4, uint64)` for a seed of at most 64 bits. */
function seedSequence(seed: bigint): bigint[] {
  let constant = 0x43b0d7e5;
  const hashed = (given: number): number => {
    const value = given ^ constant;
    constant = Math.imul(constant, 0x931e8875);
    const product = Math.imul(value, constant);
    return product ^ (product >>> 16);
  };
  const mix = (x: number, y: number): number => {
    const result = Math.imul(x, 0xca01f9dd) - Math.imul(y, 0x4973f715);
    return result ^ (result >>> 16);
  };
  const entropy = [Number(seed & 0xffffffffn) | 0, Number(seed >> 32n) | 0];
  if (seed >> 32n === 0n) entropy.pop();
  const pool = [0, 1, 2, 3].map((i) => hashed(entropy[i] ?? 0));
  for (let from = 0; from < 4; from++) {
    for (let to = 0; to < 4; to++) if (from !== to) pool[to] = mix(pool[to]!, hashed(pool[from]!));
  }
  let other = 0x8b51f9dd;
  const words = Array.from({ length: 8 }, (_, i) => {
    const value = pool[i % 4]! ^ other;
    other = Math.imul(other, 0x58f38ded);
    const product = Math.imul(value, other);
    return BigInt((product ^ (product >>> 16)) >>> 0);
  });
  return [0, 2, 4, 6].map((i) => words[i]! | (words[i + 1]! << 32n));
}

/** Three words of a text (cyrb128 without its last): enough to tell streams apart. */
function mixed(text: string): [number, number, number] {
  const h = [1779033703, 3144134277, 1013904242];
  const k = [597399067, 2869860233, 951274213];
  for (let i = 0; i < text.length; i++) {
    for (let j = 0; j < 3; j++) h[j] = h[(j + 1) % 3]! ^ Math.imul(h[j]! ^ text.charCodeAt(i), k[j]!);
  }
  for (let j = 0; j < 3; j++) h[j] = Math.imul(h[j]! ^ (h[(j + 1) % 3]! >>> 15), k[(j + 1) % 3]!);
  return [h[0]! | 0, h[1]! | 0, h[2]! | 0];
}
