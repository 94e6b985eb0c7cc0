/** Soft labels and weights as bytes and back, as fedkd/symbols.py packs them where nothing is range coded. */

import { Refusal } from "./errors.js";
import { packBits, unpackBits, Writer, type Reader } from "./frames.js";

const GRIDS = Object.fromEntries([1, 2, 3, 4, 5, 6, 7, 8].map((bits) => [`grid${bits}`, 16 + bits]));
/** Encodings that this phone knows, and the numbers that stand for them in a frame. */
export const CODES: Readonly<Record<string, number>> = { float32: 0, float16: 1, label: 2, ...GRIDS };
const NAMES = new Map(Object.entries(CODES).map(([name, code]) => [code, name]));
/** Bits of a weight to the step of its grid in eighths of an octave. */
export const STEPS: Readonly<Record<number, number>> = { 1: 32, 2: 32, 3: 16, 4: 8, 5: 8, 6: 4, 7: 2, 8: 1 };
const EIGHTHS = Array.from({ length: 8 }, (_, i) => Math.sqrt(Math.sqrt(Math.sqrt(2 ** i))));
const [LEAST, MOST] = [-1008, 1016];
const NO_DISTRIBUTIONS = "soft labels are not distributions: NaN, a negative entry or a sum that is not 1";

/** Return the name of an encoding; one that this phone cannot read is refused with the setting to change. */
export function nameOf(code: number): string {
  const name = NAMES.get(code);
  if (name === undefined) {
    throw new Refusal(`feedback in encoding ${code} cannot be read on a phone; set broadcast = 'float16'`);
  }
  return name;
}

/** Return the bits that one of `classes` classes takes. */
export function labelBits(classes: number): number {
  return Math.max(1, 32 - Math.clz32(classes - 1));
}

/** Return the units that the levels of a row sum to on the grid `encoding`. */
export function unitsOf(encoding: string): number {
  return 2 ** Number(encoding.slice(4)) - 1;
}

/** Return the soft labels `p` (n, classes), which lie on the grid `encoding`, as bytes. */
export function pack(p: Float32Array, encoding: string, classes: number): Uint8Array {
  if (encoding === "float32") return new Uint8Array(p.slice().buffer);
  if (encoding === "float16") return new Uint8Array(Uint16Array.from(p, toHalf).buffer);
  const rows = p.length / classes;
  if (encoding === "label") {
    return packBits(
      Array.from({ length: rows }, (_, i) => argmax(p, i * classes, classes)),
      labelBits(classes),
    );
  }
  const units = unitsOf(encoding);
  const levels = p.filter((_, i) => i % classes !== classes - 1).map((value) => Math.round(value * units));
  return packBits(levels, Number(encoding.slice(4)));
}

/** Return the soft labels (rows, classes) that `pack` wrote; whatever is not a distribution is refused. */
export function unpack(reader: Reader, rows: number, encoding: string, classes: number): Float32Array {
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
        const level = levels[i * (classes - 1) + c]!;
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
  // Clients may be off by 1e-3. Half precision rounds by a share of 2^-11, tiny entries by at most 2^-25.
  const slack = 1.001e-3 + (half ? 2 ** -10 + classes * 2 ** -25 : 0);
  for (let i = 0; i < rows; i++) {
    let sum = 0;
    for (let c = 0; c < classes; c++) sum += p[i * classes + c]! >= 0 ? p[i * classes + c]! : NaN;
    if (!(Math.abs(sum - 1) <= slack)) throw new Refusal(NO_DISTRIBUTIONS);
  }
  return p;
}

/** Return the bytes of weights `w` (n,) float32 that lie on the grid of `bits` bits, unless those are 0. */
export function packWeights(w: Float32Array, bits: number): Uint8Array {
  const out = new Writer();
  if (w.every((value) => value === 1)) return out.byte(0).done();
  if (w.every((value) => value === w[0])) return out.byte(1).float32(w[0]!).done();
  if (!bits) return out.byte(2).raw(new Uint8Array(w.slice().buffer)).done();
  const [top, levels] = weightLevels(w, bits);
  return out
    .byte(3)
    .byte(bits)
    .varint(top >= 0 ? 2 * top : -2 * top - 1)
    .raw(packBits(levels, bits))
    .done();
}

/** Return the place of the largest weight on the grid of `bits` bits, and the level (n,) of each. */
export function weightLevels(w: Float32Array, bits: number): [number, Int32Array] {
  const [step, most] = [STEPS[bits]!, 2 ** bits - 1];
  const least = Math.floor(LEAST / step);
  const places = Array.from(w, (value) => {
    return value > 0 ? Math.min(Math.max(rint((8 / step) * Math.log2(value)), least), Math.floor(MOST / step)) : NaN;
  });
  const largest = places.reduce((a, b) => (b > a ? b : a), least);
  const top = Math.max(largest, most - 1 + least);
  const levels = places.map((place) => (place === place ? Math.min(Math.max(most - (top - place), 1), most) : 0));
  return [top, Int32Array.from(levels)];
}

/** Return the weights (n,) of `levels` below the place `top`. */
export function weightsAt(levels: Int32Array, top: number, bits: number): Float32Array {
  return Float32Array.from(levels, (level) => {
    const eighths = (level - (2 ** bits - 1) + top) * STEPS[bits]!;
    return level ? EIGHTHS[eighths & 7]! * 2 ** (eighths >> 3) : 0;
  });
}

/** The first place of the largest of `count` values from `at` on, relative to `at`. */
export function argmax(values: ArrayLike<number>, at: number, count: number): number {
  let best = 0;
  for (let c = 1; c < count; c++) if (values[at + c]! > values[at + best]!) best = c;
  return best;
}

/** Round to the nearest whole number, ties to the even one, as numpy does. */
export function rint(value: number): number {
  const down = Math.floor(value);
  const over = value - down;
  return over > 0.5 || (over === 0.5 && down % 2 !== 0) ? down + 1 : down;
}

const WORD = new Uint32Array(1);
const SINGLE = new Float32Array(WORD.buffer);

/** The bits of the half precision number nearest to a single precision one, ties to even. */
export function toHalf(value: number): number {
  SINGLE[0] = value;
  const word = WORD[0]!;
  const sign = (word >>> 16) & 0x8000;
  const size = Math.abs(SINGLE[0]);
  if (!(size < 65520)) return sign | (size === size ? 0x7c00 : 0x7e00);
  if (size < 2 ** -14) return sign | rint(size * 2 ** 24); // whole multiples of the least number there is
  const exponent = ((word >>> 23) & 255) - 112;
  const rest = word & 0x1fff;
  const up = rest > 0x1000 || (rest === 0x1000 && (word & 0x2000) !== 0) ? 1 : 0;
  return sign | (((exponent << 10) | ((word >>> 13) & 0x3ff)) + up);
}

/** The number that half precision bits stand for. */
export function fromHalf(bits: number): number {
  const [sign, exponent, rest] = [bits & 0x8000 ? -1 : 1, (bits >> 10) & 31, bits & 0x3ff];
  if (exponent === 31) return rest ? NaN : sign * Infinity;
  return exponent ? sign * (1 + rest / 1024) * 2 ** (exponent - 15) : sign * rest * 2 ** -24;
}
