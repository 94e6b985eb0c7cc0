/** How a network learns: mini-batches, Adam, schedules, other views of the inputs (fedkd/learner/torch_learner.py). */

import { Refusal } from "./errors.js";
import { sizeOf, type Inputs } from "./features.js";
import { softmax, type Loss } from "./losses.js";
import type { Floats, Network } from "./net.js";
import { pacer, type Pace } from "./pace.js";
import type { Stream } from "./random.js";
import { options, parse, split } from "./spec.js";

/** What a pass over data looks like. */
export interface Training {
  epochs: number;
  batchSize: number;
  learningRate: number;
  schedule: (done: number) => number;
  views: View[];
}

type View = (x: Floats, shape: readonly number[], stream: Stream) => void;

/** Minimize `loss` of `targets` (rows, classes) by Adam, which starts anew. Returns the mean loss of the last epoch. */
export async function learn(
  network: Network,
  inputs: Inputs,
  targets: Float32Array,
  loss: Loss,
  training: Training,
  stream: Stream,
  pace: Pace = {},
  doing = "training",
): Promise<number> {
  const { theta, classes } = network;
  const [gradient, means, squares] = [network.zeros(), network.zeros(), network.zeros()];
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
      let total = 0;
      for (const row of rows) {
        let x = inputs.x.subarray(row * size, (row + 1) * size);
        if (training.views.length) {
          view.set(x);
          for (const change of training.views) change(view, inputs.shape, stream);
          x = view;
        }
        total += loss(network.forward(x), targets, row * classes, dz);
        network.backward(dz, gradient);
      }
      if (!Number.isFinite(total)) {
        throw new Refusal(`training diverged: lower learning_rate (${training.learningRate})`);
      }
      last += total / inputs.rows;
      adam(theta, gradient, means, squares, ++steps, training.learningRate * training.schedule(done), rows.length);
    }
  }
  return last;
}

/** One step of Adam (beta 0.9 and 0.999, epsilon 1e-8) on a gradient that is the sum over `rows`. */
function adam(theta: Floats, sum: Floats, means: Floats, squares: Floats, t: number, rate: number, rows: number): void {
  const step = rate / (1 - 0.9 ** t);
  const scale = 1 / Math.sqrt(1 - 0.999 ** t);
  for (let i = 0; i < theta.length; i++) {
    const g = sum[i]! / rows;
    const mean = (means[i] = 0.9 * means[i]! + 0.1 * g);
    const square = (squares[i] = 0.999 * squares[i]! + 0.001 * g * g);
    theta[i]! -= (step * mean) / (Math.sqrt(square) * scale + 1e-8);
  }
}

/** Return the soft labels (rows, classes) of inputs. */
export async function predict(network: Network, inputs: Inputs, pace: Pace = {}): Promise<Float32Array> {
  const size = sizeOf(inputs.shape);
  const p = new Float32Array(inputs.rows * network.classes);
  const rest = pacer(pace, "predicting");
  for (let i = 0; i < inputs.rows; i++) {
    p.set(softmax(network.forward(inputs.x.subarray(i * size, (i + 1) * size))), i * network.classes);
    await rest(i / inputs.rows);
  }
  return p;
}

/** Labels (n,) as rows (n, classes) with a single one. */
export function oneHot(y: Int32Array, classes: number): Float32Array {
  const p = new Float32Array(y.length * classes);
  y.forEach((label, i) => (p[i * classes + label] = 1));
  return p;
}

/** Return the schedule that `text` names: the learning rate's factor by the share of all steps that is done. */
export function scheduleOf(text: string): (done: number) => number {
  const spec = parse(text);
  if (spec.name === "constant") return options(spec, {}, "schedule") && (() => 1);
  if (spec.name === "linear") return options(spec, {}, "schedule") && ((done) => 1 - done);
  if (spec.name === "cosine") {
    const { warmup } = options(spec, { warmup: 0 }, "schedule");
    return (t) => (t < warmup ? t / warmup : (1 + Math.cos((Math.PI * (t - warmup)) / (1 - warmup))) / 2);
  }
  throw new Refusal(`schedule: a phone cannot do '${spec.name}'; set schedule = 'constant'`);
}

/** Return the views of a chain such as "flip | shift(pixels=1)", which change an input in place. */
export function viewsOf(text: string): View[] {
  return split(text, "|").flatMap((one): View[] => {
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

/** Mirror every second image, at random. */
function flip(x: Floats, shape: readonly number[], stream: Stream): void {
  if (stream.uniform() >= 0.5) return;
  const width = shape[2]!;
  for (let row = 0; row < x.length; row += width) x.subarray(row, row + width).reverse();
}

/** Move an image by up to `pixels` each way; zeros come in. */
function shift(x: Floats, shape: readonly number[], stream: Stream, pixels: number): void {
  const [channels, height, width] = shape as [number, number, number];
  const [down, right] = [stream.below(2 * pixels + 1) - pixels, stream.below(2 * pixels + 1) - pixels];
  const kept = x.slice();
  for (let c = 0; c < channels; c++) {
    for (let i = 0; i < height; i++) {
      for (let j = 0; j < width; j++) {
        const [a, b] = [i - down, j - right];
        const inside = a >= 0 && a < height && b >= 0 && b < width;
        x[(c * height + i) * width + j] = inside ? kept[(c * height + a) * width + b]! : 0;
      }
    }
  }
}
