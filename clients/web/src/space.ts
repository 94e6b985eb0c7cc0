/** The space in which private and public data are compared, made of the latter alone (fedkd/expertise/space.py). */

import { leading } from "./eigen.js";
import { featuresOf, type Features, type Inputs } from "./features.js";
import { pacer, type Pace } from "./pace.js";
import { sample } from "./random.js";

/** Rows (n, columns), one after the other. */
export interface Rows {
  data: Float32Array;
  columns: number;
}

/** The transfer set in its principal components, and the way there for other inputs. */
export interface Space {
  public: Rows;
  project(inputs: Inputs, pace?: Pace): Promise<Rows>;
}

/** The transfer set around each of its rows: mean log distances, how many rows stand for it, and its dimension. */
export interface Around {
  logR: Float32Array;
  rows: number;
  meanDigamma: number;
  dimension: number;
}

const WIDE = 1024;
const CHUNK = 256;
const REFERENCE = 5000;
const PROBES = 1000;

/** Return how many rows there are. */
export function count(rows: Rows): number {
  return rows.columns ? rows.data.length / rows.columns : 0;
}

/** Return those of `rows` whose numbers are given. */
export function pick(rows: Rows, numbers: ArrayLike<number>): Rows {
  const { data, columns } = rows;
  const picked = new Float32Array(numbers.length * columns);
  for (let i = 0; i < numbers.length; i++) {
    picked.set(data.subarray(numbers[i]! * columns, (numbers[i]! + 1) * columns), i * columns);
  }
  return { data: picked, columns };
}

/** Return the space of a transfer set: the `dimensions` leading principal components of its shapes. */
export async function spaceOf(transfer: Inputs, dimensions: number, pace: Pace = {}): Promise<Space> {
  const components = await componentsOf(transfer, dimensions, pace);
  const project = (inputs: Inputs, pace: Pace = {}) => projected(components, inputs, pace);
  return { public: await project(transfer, pace), project };
}

/** Principal components of features: their mean, directions of length 1, and the variance along each, descending. */
export interface Components {
  features: Features;
  center: Float32Array;
  directions: Float32Array[];
  variances: number[];
}

/** Return the `dimensions` leading components of a transfer set's shapes; of wide ones from at most 2000 rows. */
export async function componentsOf(transfer: Inputs, dimensions: number, pace: Pace = {}): Promise<Components> {
  const features = featuresOf(transfer.shape);
  const step = features.width > WIDE ? Math.ceil(transfer.rows / 2000) : 1;
  const taken = Int32Array.from({ length: Math.ceil(transfer.rows / step) }, (_, i) => i * step);
  const center = await mean(features, transfer, taken);
  return { features, center, ...(await principal(features, transfer, taken, center, dimensions, pace)) };
}

async function mean(features: Features, transfer: Inputs, taken: Int32Array): Promise<Float32Array> {
  const sum = new Float64Array(features.width);
  const row = new Float32Array(features.width);
  for (const i of taken) {
    features.write(transfer, i, i + 1, row);
    for (let j = 0; j < row.length; j++) sum[j]! += row[j]!;
  }
  return Float32Array.from(sum, (value) => value / taken.length);
}

/** Return the leading directions of the taken rows about `center`. */
async function principal(
  features: Features,
  transfer: Inputs,
  taken: Int32Array,
  center: Float32Array,
  dimensions: number,
  pace: Pace,
): Promise<{ directions: Float32Array[]; variances: number[] }> {
  const [n, d] = [taken.length, features.width];
  const rest = pacer(pace, "looking at the public images");
  const about = new Float32Array(n * d);
  for (let i = 0; i < n; i++) {
    const row = about.subarray(i * d, (i + 1) * d);
    features.write(transfer, taken[i]!, taken[i]! + 1, row);
    for (let j = 0; j < d; j++) row[j]! -= center[j]!;
    await rest(0);
  }
  const tall = n > d;
  const matrix = tall ? await scatter(about, n, d, rest) : await gram(about, n, d, rest);
  const { values, vectors } = await leading(matrix, Math.min(n, d), dimensions, rest);
  const kept = vectors.filter((_, k) => values[k]! > 1e-9 * values[0]!);
  const variances = Array.from(values.slice(0, kept.length), (value) => value / n);
  if (tall) return { directions: kept.map((vector) => Float32Array.from(vector)), variances };
  const directions = kept.map((mix, k) => {
    const direction = new Float64Array(d);
    for (let i = 0; i < n; i++) {
      const share = mix[i]! / Math.sqrt(values[k]!);
      for (let j = 0; j < d; j++) direction[j]! += share * about[i * d + j]!;
    }
    return Float32Array.from(direction);
  });
  return { directions, variances };
}

type Rest = (share: number) => Promise<void>;

/** The sum of outer products (d, d) of rows (n, d), four at a time, since reading and writing the sum is what costs. */
async function scatter(about: Float32Array, n: number, d: number, rest: Rest): Promise<Float64Array> {
  const out = new Float64Array(d * d);
  const four = new Float64Array(4 * d);
  for (let i = 0; i < n; i += 4) {
    four.fill(0);
    four.set(about.subarray(i * d, Math.min(i + 4, n) * d));
    for (let a = 0; a < d; a++) {
      const v0 = four[a]!;
      const v1 = four[d + a]!;
      const v2 = four[2 * d + a]!;
      const v3 = four[3 * d + a]!;
      for (let b = a, at = a * d + a; b < d; b++, at++) {
        out[at]! += v0 * four[b]! + v1 * four[d + b]! + v2 * four[2 * d + b]! + v3 * four[3 * d + b]!;
      }
    }
    await rest(i / n);
  }
  for (let a = 0; a < d; a++) for (let b = 0; b < a; b++) out[a * d + b] = out[b * d + a]!;
  return out;
}

/** The inner products (n, n) of rows (n, d). */
async function gram(about: Float32Array, n: number, d: number, rest: Rest): Promise<Float64Array> {
  const out = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      let s0 = 0;
      let s1 = 0;
      for (let k = 0, a = i * d, b = j * d; k + 1 < d; k += 2, a += 2, b += 2) {
        s0 += about[a]! * about[b]!;
        s1 += about[a + 1]! * about[b + 1]!;
      }
      if (d % 2) s0 += about[i * d + d - 1]! * about[j * d + d - 1]!;
      out[i * n + j] = out[j * n + i] = s0 + s1;
    }
    await rest(i / n);
  }
  return out;
}

/** Return inputs as rows of their coordinates along the directions. */
export async function projected(components: Components, inputs: Inputs, pace: Pace = {}): Promise<Rows> {
  const { features, center, directions } = components;
  const [d, columns] = [features.width, directions.length];
  const data = new Float32Array(inputs.rows * columns);
  const part = new Float32Array(Math.min(CHUNK, inputs.rows) * d);
  const rest = pacer(pace, "finding where the images lie");
  for (let from = 0; from < inputs.rows; from += CHUNK) {
    const to = Math.min(from + CHUNK, inputs.rows);
    features.write(inputs, from, to, part);
    for (let i = 0; i < to - from; i++) {
      for (let j = 0; j < d; j++) part[i * d + j]! -= center[j]!;
      for (let k = 0; k < columns; k++) {
        const direction = directions[k]!;
        let sum = 0;
        for (let j = 0, at = i * d; j < d; j++, at++) sum += part[at]! * direction[j]!;
        data[(from + i) * columns + k] = sum;
      }
    }
    await rest(to / inputs.rows);
  }
  return { data, columns };
}

/** Return the distances (n, k) of rows `x` to their k nearest rows of `to`, ascending; k is in 1..rows of `to`. */
export async function nearest(x: Rows, to: Rows, k: number, pace: Pace = {}): Promise<Float32Array> {
  const [n, others, d] = [count(x), count(to), x.columns];
  const found = new Float32Array(n * k);
  const best = new Float64Array(k);
  const rest = pacer(pace, "comparing images");
  for (let i = 0; i < n; i++) {
    best.fill(Infinity);
    for (let j = 0; j < others; j++) {
      const limit = best[k - 1]!;
      let sum = 0;
      // Directions of much variance come first, so most rows are known to be too far after a few of them.
      for (let a = i * d, b = j * d, end = a + d; a < end && sum < limit;) {
        for (const stop = Math.min(a + 16, end); a < stop; a++, b++) {
          const gap = x.data[a]! - to.data[b]!;
          sum += gap * gap;
        }
      }
      if (sum >= limit) continue;
      let place = k - 1;
      for (; place > 0 && best[place - 1]! > sum; place--) best[place] = best[place - 1]!;
      best[place] = sum;
    }
    for (let j = 0; j < k; j++) found[i * k + j] = Math.sqrt(best[j]!);
    await rest(i / n);
  }
  return found;
}

/** Return how densely the rows of a transfer set lie around each of them. */
export async function around(all: Rows, neighbors: number, pace: Pace = {}): Promise<Around> {
  const rows = count(all);
  const some = await sample(rows, REFERENCE);
  const own = new Set(some);
  const k = Math.min(neighbors, Math.max(some.length - 1, 1));
  const wide = Math.min(k + 1, some.length);
  const found = await nearest(all, pick(all, some), wide, pace);
  // The nearest to a row that stands for the set is the row itself.
  const r = (i: number, j: number) => found[i * wide + j + (own.has(i) ? wide - k : 0)]!;
  const last = Float32Array.from({ length: rows }, (_, i) => r(i, k - 1));
  const least = 0.1 * (median(last) || last.reduce((sum, value) => sum + value, 0) / rows || 1);
  const logR = Float32Array.from({ length: rows }, (_, i) => {
    let sum = 0;
    for (let j = 0; j < k; j++) sum += Math.log(Math.max(r(i, j), least));
    return sum / k;
  });
  return { logR, rows: some.length, meanDigamma: meanDigamma(k), dimension: await intrinsicDimension(all, pace) };
}

/** Return on how many dimensions the rows lie (Levina and Bickel, 2004): few for images, whatever their size. */
export async function intrinsicDimension(all: Rows, pace: Pace = {}): Promise<number> {
  const rows = count(all);
  const k = Math.min(10, rows - 1);
  if (k < 2) return 1;
  const r = await nearest(pick(all, await sample(rows, PROBES)), all, k + 1, pace);
  let [sum, terms] = [0, 0];
  for (let at = 0; at < r.length; at += k + 1) {
    if (!(r[at + 1]! > 0)) continue; // of rows that are there twice nothing can be said
    for (let j = 1; j < k; j++, terms++) sum += Math.log(r[at + k]! / r[at + j]!);
  }
  const inverse = terms ? sum / terms : Infinity;
  return Math.min(Math.max(1 / Math.max(inverse, 1e-9), 1), all.columns);
}

/** The mean of the digamma function over 1..k. */
export function meanDigamma(k: number): number {
  let [psi, sum] = [-0.5772156649015329, 0];
  for (let j = 1; j <= k; psi += 1 / j++) sum += psi;
  return sum / k;
}

function median(values: Float32Array): number {
  const sorted = values.slice().sort();
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}
