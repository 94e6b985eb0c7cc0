/** Softmax regression on public features, also with differential privacy, as fedkd/learner/linear_learner.py has it. */

import type { Event } from "./codec.js";
import type { Examples } from "./expertise.js";
import type { Inputs } from "./features.js";
import { softmax } from "./losses.js";
import { pacer, type Pace } from "./pace.js";
import { eventOf, type Spending } from "./privacy.js";
import { coins, normals, type Entropy } from "./random.js";
import { componentsOf, count, projected, type Components, type Rows } from "./space.js";

const CONSTANT = 1 / 3;
const RIDGE = 0.03;

/** What the model works in: whitened components of the transfer set, and the inverse of its second moments there. */
export interface Whitened {
  components: Components;
  inverse: Float64Array;
  /** The transfer set's own rows (M, d + 1). */
  public: Rows;
}

/** Return the space of a model of `dimensions` leading components. */
export async function whitened(transfer: Inputs, dimensions: number, pace: Pace = {}): Promise<Whitened> {
  const found = await componentsOf(transfer, dimensions, pace);
  const kept = found.variances.filter((variance) => variance > 1e-6 * found.variances[0]!).length;
  const directions = found.directions.slice(0, kept).map((direction, k) => {
    return direction.map((value) => value / Math.sqrt(found.variances[k]! * kept));
  });
  const components = { ...found, directions };
  const rows = await unitRows(components, transfer, pace);
  return { components, public: rows, inverse: inverted(moments(rows), rows.columns, RIDGE) };
}

/** Return rows (n, d + 1) of length 1, the last coordinate from a constant: no example weighs more than another. */
export async function unitRows(components: Components, inputs: Inputs, pace: Pace = {}): Promise<Rows> {
  const z = await projected(components, inputs, pace);
  const columns = z.columns + 1;
  const data = new Float32Array(inputs.rows * columns);
  for (let i = 0; i < inputs.rows; i++) {
    let squares = CONSTANT * CONSTANT;
    for (let j = 0; j < z.columns; j++) squares += z.data[i * z.columns + j]! ** 2;
    const length = Math.sqrt(squares);
    for (let j = 0; j < z.columns; j++) data[i * columns + j] = z.data[i * z.columns + j]! / length;
    data[i * columns + z.columns] = CONSTANT / length;
  }
  return { data, columns };
}

/** Return weights (d + 1, classes) after accelerated steps down the cross entropy of soft labels (n, classes). */
export function descendPlainly(
  weights: Float64Array,
  v: Rows,
  p: Float32Array,
  classes: number,
  steps: number,
): Float64Array {
  const n = count(v);
  const factor = inverted(moments(v), v.columns, 1e-4); // half the moments bound the curvature (Böhning, 1992)
  let before = weights;
  let ahead = weights;
  for (let t = 0; t < steps; t++) {
    const gradient = new Float64Array(weights.length);
    for (let i = 0; i < n; i++) addGradient(gradient, v, i, errors(v, i, ahead, p, classes), 1 / n, classes);
    const move = product(factor, gradient, v.columns, classes);
    const now = ahead.map((value, j) => value - 2 * move[j]!);
    const last = before;
    ahead = now.map((value, j) => value + (t / (t + 3)) * (value - last[j]!)); // Nesterov's momentum
    before = now;
  }
  return before;
}

/** Take the steps of one round of DP-SGD, in place; directions are divided by the curvature of public rows. */
export async function descendPrivately(
  weights: Float64Array,
  v: Rows,
  mine: Examples,
  space: Whitened,
  budget: Spending,
  classes: number,
  entropy: Entropy,
  pace: Pace = {},
): Promise<Event> {
  const { rate, clip, examples, step, steps, noise } = budget;
  const rest = pacer(pace, "training with noise");
  for (let t = 0; t < steps; t++) {
    await rest(t / steps);
    const chosen = rate === 1 ? Int32Array.from(mine.y.keys()) : coins(entropy, mine.rows, rate);
    const total = linearSum(weights, v, mine.y, chosen, clip, classes);
    const draws = normals(entropy, total.length);
    const move = product(
      space.inverse,
      total.map((value, j) => value + noise * clip * draws[j]!),
      v.columns,
      classes,
    );
    const length = (step * (1 - t / steps) * classes) / (rate * examples);
    for (let j = 0; j < weights.length; j++) weights[j]! -= length * move[j]!;
  }
  return eventOf(budget, steps);
}

/** Return the sum (d + 1, classes) of the gradients of the `chosen` examples, each of norm at most `clip`. */
export function linearSum(
  weights: Float64Array,
  v: Rows,
  y: Int32Array,
  chosen: Int32Array,
  clip: number,
  classes: number,
): Float64Array {
  const total = new Float64Array(weights.length);
  const label = new Float32Array(classes);
  for (const i of chosen) {
    const row = v.data.subarray(i * v.columns, (i + 1) * v.columns);
    // An example of absurd inputs would tell of itself by spoiling the model: it counts as none.
    if (!row.every(Number.isFinite)) continue;
    label.fill(0);
    label[y[i]!] = 1;
    const error = errors(v, i, weights, label, classes, 0);
    const norm = Math.hypot(...error) * Math.hypot(...row); // of an outer product
    addGradient(total, v, i, error, Math.min(1, (clip * (1 - 1e-6)) / Math.max(norm, 1e-30)), classes);
  }
  return total;
}

/** Return the soft labels (n, classes) of rows; a temperature above 1 keeps a noisy model from being all certain. */
export function predictLinearly(weights: Float64Array, v: Rows, classes: number, temperature: number): Float32Array {
  const p = new Float32Array(count(v) * classes);
  for (let i = 0; i < count(v); i++) p.set(softmax(logits(v, i, weights, classes), temperature), i * classes);
  return p;
}

function logits(v: Rows, i: number, weights: Float64Array, classes: number): Float64Array {
  const z = new Float64Array(classes);
  for (let j = 0; j < v.columns; j++) {
    const value = v.data[i * v.columns + j]!;
    for (let c = 0; c < classes; c++) z[c]! += value * weights[j * classes + c]!;
  }
  return z;
}

function errors(
  v: Rows,
  i: number,
  weights: Float64Array,
  p: Float32Array,
  classes: number,
  at = i * classes,
): Float64Array {
  return softmax(logits(v, i, weights, classes)).map((value, c) => value - p[at + c]!);
}

function addGradient(
  sum: Float64Array,
  v: Rows,
  i: number,
  error: Float64Array,
  factor: number,
  classes: number,
): void {
  for (let j = 0; j < v.columns; j++) {
    const value = factor * v.data[i * v.columns + j]!;
    for (let c = 0; c < classes; c++) sum[j * classes + c]! += value * error[c]!;
  }
}

function moments(v: Rows): Float64Array {
  const [n, d] = [count(v), v.columns];
  const out = new Float64Array(d * d);
  for (let i = 0; i < n; i++) {
    for (let a = 0; a < d; a++) {
      const value = v.data[i * d + a]! / n;
      for (let b = 0; b < d; b++) out[a * d + b]! += value * v.data[i * d + b]!;
    }
  }
  return out;
}

function product(matrix: Float64Array, columns: Float64Array, d: number, classes: number): Float64Array {
  const out = new Float64Array(columns.length);
  for (let a = 0; a < d; a++) {
    for (let b = 0; b < d; b++) {
      const value = matrix[a * d + b]!;
      for (let c = 0; c < classes; c++) out[a * classes + c]! += value * columns[b * classes + c]!;
    }
  }
  return out;
}

/** Return the inverse of a symmetric positive matrix (d, d) after `ridge` times its mean diagonal is added. */
function inverted(matrix: Float64Array, d: number, ridge: number): Float64Array {
  let trace = 0;
  for (let a = 0; a < d; a++) trace += matrix[a * d + a]!;
  const left = matrix.map((value, at) => value + (at % (d + 1) === 0 ? (ridge * trace) / d : 0));
  const right = Float64Array.from({ length: d * d }, (_, at) => (at % (d + 1) === 0 ? 1 : 0));
  for (let k = 0; k < d; k++) {
    const pivot = left[k * d + k]!; // positive throughout, so no rows change places
    for (let j = 0; j < d; j++) {
      left[k * d + j]! /= pivot;
      right[k * d + j]! /= pivot;
    }
    for (let i = 0; i < d; i++) {
      const factor = left[i * d + k]!;
      if (i === k || factor === 0) continue;
      for (let j = 0; j < d; j++) {
        left[i * d + j]! -= factor * left[k * d + j]!;
        right[i * d + j]! -= factor * right[k * d + j]!;
      }
    }
  }
  return right;
}
