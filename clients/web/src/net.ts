/** Small networks in plain loops: all weights in one array, one example forward, then back. As in fedkd/learner/models.py. */

import type { Stream } from "./random.js";
import { Refusal } from "./errors.js";
import { sizeOf } from "./features.js";

/** Single precision in earnest; double where gradients are compared with differences. */
export type Floats = Float32Array | Float64Array;
type Alloc = new (length: number) => Floats;

/** One stage: it remembers what it was given, so that `backward` can follow `forward`. */
interface Layer {
  readonly weights: number;
  readonly fan: number;
  readonly out: Floats;
  /** Read weights from `theta` at `at`. */
  forward(theta: Floats, at: number, input: Floats): void;
  /** Add the gradient of the weights to `gradient` at `at`, and write that of the input unless nobody asks for it. */
  backward(theta: Floats, at: number, dout: Floats, gradient: Floats, dinput: Floats | null): void;
}

/** Weights (out, in) and a bias each; with `relu`, what is below zero is cut. */
class Dense implements Layer {
  readonly weights: number;
  readonly fan: number;
  readonly out: Floats;
  private input: Floats;

  constructor(
    private readonly inputs: number,
    outputs: number,
    private readonly relu: boolean,
    alloc: Alloc,
  ) {
    this.weights = (inputs + 1) * outputs;
    this.fan = inputs;
    this.out = new alloc(outputs);
    this.input = new alloc(0);
  }

  forward(theta: Floats, at: number, input: Floats): void {
    const { inputs, out } = this;
    this.input = input;
    const bias = at + inputs * out.length;
    for (let o = 0; o < out.length; o++) {
      let s0 = theta[bias + o]!;
      let s1 = 0;
      let w = at + o * inputs;
      let i = 0;
      for (; i + 1 < inputs; i += 2, w += 2) {
        s0 += theta[w]! * input[i]!;
        s1 += theta[w + 1]! * input[i + 1]!;
      }
      if (i < inputs) s0 += theta[w]! * input[i]!;
      out[o] = this.relu && s0 + s1 < 0 ? 0 : s0 + s1;
    }
  }

  backward(theta: Floats, at: number, dout: Floats, gradient: Floats, dinput: Floats | null): void {
    const { inputs, out, input } = this;
    const bias = at + inputs * out.length;
    dinput?.fill(0);
    for (let o = 0; o < out.length; o++) {
      const d = this.relu && !(out[o]! > 0) ? 0 : dout[o]!;
      if (d === 0) continue;
      gradient[bias + o]! += d;
      const w = at + o * inputs;
      for (let i = 0; i < inputs; i++) gradient[w + i]! += d * input[i]!;
      if (dinput) for (let i = 0; i < inputs; i++) dinput[i]! += d * theta[w + i]!;
    }
  }
}

/**
 * A 3x3 convolution with zeros around, ReLU and 2x2 max pooling, from (inputs, height, width).
 *
 * Three of four gradients are zero after pooling, and those of what ReLU cut: only the others are followed back.
 */
class Convolution implements Layer {
  readonly weights: number;
  readonly fan: number;
  readonly out: Floats;
  private readonly padded: Float64Array;
  private readonly back: Float64Array;
  private readonly plane: Float64Array;
  private readonly winner: Int32Array;
  private readonly place: Int32Array;
  private readonly slope: Float64Array;

  constructor(
    private readonly inputs: number,
    private readonly height: number,
    private readonly width: number,
    private readonly outputs: number,
    alloc: Alloc,
  ) {
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

  forward(theta: Floats, at: number, input: Floats): void {
    const { inputs, height, width, outputs, padded, plane } = this;
    const rows = (height >> 1) * 2;
    const columns = (width >> 1) * 2;
    const stride = width + 2;
    for (let c = 0; c < inputs; c++) {
      for (let y = 0; y < height; y++) {
        const to = (c * (height + 2) + y + 1) * stride + 1;
        const from = (c * height + y) * width;
        for (let x = 0; x < width; x++) padded[to + x] = input[from + x]!;
      }
    }
    for (let o = 0; o < outputs; o++) {
      plane.fill(theta[at + 9 * inputs * outputs + o]!);
      for (let c = 0; c < inputs; c++) {
        const w = at + (o * inputs + c) * 9;
        const w0 = theta[w]!;
        const w1 = theta[w + 1]!;
        const w2 = theta[w + 2]!;
        const w3 = theta[w + 3]!;
        const w4 = theta[w + 4]!;
        const w5 = theta[w + 5]!;
        const w6 = theta[w + 6]!;
        const w7 = theta[w + 7]!;
        const w8 = theta[w + 8]!;
        for (let y = 0; y < rows; y++) {
          let a = (c * (height + 2) + y) * stride + 2;
          let b = a + stride;
          let d = b + stride;
          // The window slides: of nine values six are known from the place before.
          let a0 = padded[a - 2]!;
          let a1 = padded[a - 1]!;
          let b0 = padded[b - 2]!;
          let b1 = padded[b - 1]!;
          let d0 = padded[d - 2]!;
          let d1 = padded[d - 1]!;
          for (let to = y * columns, end = to + columns; to < end; to++, a++, b++, d++) {
            const a2 = padded[a]!;
            const b2 = padded[b]!;
            const d2 = padded[d]!;
            plane[to]! += w0 * a0 + w1 * a1 + w2 * a2 + w3 * b0 + w4 * b1 + w5 * b2 + w6 * d0 + w7 * d1 + w8 * d2;
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
  private pool(o: number, rows: number, columns: number): void {
    const { plane, width } = this;
    for (let y = 0; y < rows; y++) {
      for (let x = 0; x < columns; x++) {
        const at = 4 * y * columns + 2 * x;
        const under = at + 2 * columns;
        let best = at;
        if (plane[at + 1]! > plane[best]!) best = at + 1;
        if (plane[under]! > plane[best]!) best = under;
        if (plane[under + 1]! > plane[best]!) best = under + 1;
        const most = plane[best]!;
        const to = (o * rows + y) * columns + x;
        this.out[to] = most > 0 ? most : 0;
        const down = Math.floor(best / (2 * columns));
        this.winner[to] = down * (width + 2) + best - down * 2 * columns;
      }
    }
  }

  backward(theta: Floats, at: number, dout: Floats, gradient: Floats, dinput: Floats | null): void {
    const { inputs, height, width, outputs, padded, back, place, slope } = this;
    const stride = width + 2;
    const pooled = place.length;
    if (dinput) back.fill(0);
    for (let o = 0; o < outputs; o++) {
      let live = 0;
      let bias = 0;
      for (let i = o * pooled; i < (o + 1) * pooled; i++) {
        const d = dout[i]!;
        if (d === 0 || !(this.out[i]! > 0)) continue;
        place[live] = this.winner[i]!;
        slope[live++] = d;
        bias += d;
      }
      gradient[at + 9 * inputs * outputs + o]! += bias;
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
          const d = slope[i]!;
          const a = start + place[i]!;
          const b = a + stride;
          const e = b + stride;
          g0 += d * padded[a]!;
          g1 += d * padded[a + 1]!;
          g2 += d * padded[a + 2]!;
          g3 += d * padded[b]!;
          g4 += d * padded[b + 1]!;
          g5 += d * padded[b + 2]!;
          g6 += d * padded[e]!;
          g7 += d * padded[e + 1]!;
          g8 += d * padded[e + 2]!;
        }
        gradient[w]! += g0;
        gradient[w + 1]! += g1;
        gradient[w + 2]! += g2;
        gradient[w + 3]! += g3;
        gradient[w + 4]! += g4;
        gradient[w + 5]! += g5;
        gradient[w + 6]! += g6;
        gradient[w + 7]! += g7;
        gradient[w + 8]! += g8;
        if (!dinput) continue;
        const w0 = theta[w]!;
        const w1 = theta[w + 1]!;
        const w2 = theta[w + 2]!;
        const w3 = theta[w + 3]!;
        const w4 = theta[w + 4]!;
        const w5 = theta[w + 5]!;
        const w6 = theta[w + 6]!;
        const w7 = theta[w + 7]!;
        const w8 = theta[w + 8]!;
        for (let i = 0; i < live; i++) {
          const d = slope[i]!;
          const a = start + place[i]!;
          const b = a + stride;
          const e = b + stride;
          back[a]! += d * w0;
          back[a + 1]! += d * w1;
          back[a + 2]! += d * w2;
          back[b]! += d * w3;
          back[b + 1]! += d * w4;
          back[b + 2]! += d * w5;
          back[e]! += d * w6;
          back[e + 1]! += d * w7;
          back[e + 2]! += d * w8;
        }
      }
    }
    if (!dinput) return;
    for (let c = 0; c < inputs; c++) {
      for (let y = 0; y < height; y++) {
        const from = (c * (height + 2) + y + 1) * stride + 1;
        const to = (c * height + y) * width;
        for (let x = 0; x < width; x++) dinput[to + x] = back[from + x]!;
      }
    }
  }
}

/** Layers in a row. `theta` holds the weights of all; who trains may change it in place. */
export class Network {
  readonly theta: Floats;
  private readonly layers: Layer[];
  private readonly starts: number[] = [];
  private readonly slopes: Floats[];

  constructor(
    layers: Layer[],
    readonly classes: number,
    private readonly alloc: Alloc,
  ) {
    this.layers = layers;
    let size = 0;
    for (const layer of layers) {
      this.starts.push(size);
      size += layer.weights;
    }
    this.theta = new alloc(size);
    this.slopes = layers.slice(0, -1).map((layer) => new alloc(layer.out.length));
  }

  /** Draw weights as torch does: uniform within one over the root of how many inputs a unit has. */
  initialize(stream: Stream): this {
    this.layers.forEach((layer, l) => {
      const bound = 1 / Math.sqrt(layer.fan);
      for (let i = 0; i < layer.weights; i++) this.theta[this.starts[l]! + i] = (2 * stream.uniform() - 1) * bound;
    });
    return this;
  }

  /** Return the logits (classes,) of one input; the array is used again by the next call. */
  forward(input: Floats): Floats {
    let value = input;
    this.layers.forEach((layer, l) => {
      layer.forward(this.theta, this.starts[l]!, value);
      value = layer.out;
    });
    return value;
  }

  /** Add the gradient at the last input to `gradient`, where `dz` (classes,) is that of its logits. */
  backward(dz: Floats, gradient: Floats): void {
    let d = dz;
    for (let l = this.layers.length - 1; l >= 0; l--) {
      const below = l > 0 ? this.slopes[l - 1]! : null;
      this.layers[l]!.backward(this.theta, this.starts[l]!, d, gradient, below);
      if (below) d = below;
    }
  }

  /** An array as long as all weights, zero. */
  zeros(): Floats {
    return new this.alloc(this.theta.length);
  }
}

/** Two 3x3 convolutions, each with ReLU and 2x2 pooling, then one hidden layer: for images from 4x4 up. */
export function cnn(
  shape: readonly number[],
  classes: number,
  width = 16,
  hidden = 64,
  alloc: Alloc = Float32Array,
): Network {
  if (shape.length !== 3 || Math.min(shape[1]!, shape[2]!) < 4) {
    throw new Refusal(`learner cnn needs images (channels, height, width) of at least 4x4, got (${shape.join(", ")})`);
  }
  const [channels, high, wide] = shape as [number, number, number];
  const first = new Convolution(channels, high, wide, width, alloc);
  const second = new Convolution(width, high >> 1, wide >> 1, 2 * width, alloc);
  const flat = 2 * width * (high >> 2) * (wide >> 2);
  return new Network(
    [first, second, new Dense(flat, hidden, true, alloc), new Dense(hidden, classes, false, alloc)],
    classes,
    alloc,
  );
}

/** One hidden layer on flattened inputs of any shape. */
export function mlp(shape: readonly number[], classes: number, hidden = 64, alloc: Alloc = Float32Array): Network {
  return new Network(
    [new Dense(sizeOf(shape), hidden, true, alloc), new Dense(hidden, classes, false, alloc)],
    classes,
    alloc,
  );
}
