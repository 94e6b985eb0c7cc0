/** Mechanisms: what is done to soft labels before they leave, and how they are written (fedkd/release.py). */

import { Refusal } from "./errors.js";
import type { Stream } from "./random.js";
import { options, parse, split } from "./spec.js";
import { argmax, fromHalf, STEPS, toHalf, unitsOf, weightLevels, weightsAt } from "./symbols.js";

/** What leaves: soft labels `p` (n, classes), how much each row counts `w` (n,), and how both are written. */
export interface Ballot {
  p: Float32Array;
  w: Float32Array;
  classes: number;
  encoding: string;
  weightBits: number;
}

type Mechanism = (ballot: Ballot, stream: Stream) => Ballot;

/** Return the mechanisms of a chain such as "quantize(bits=8) | weights(bits=5)"; refuse what a phone cannot do. */
export function chain(text: string, key: "release" | "broadcast"): Mechanism[] {
  return split(text, "|").map((one) => mechanism(one, key));
}

/** Return the ballot after the mechanisms of `steps`, from the left. */
export function prepare(steps: Mechanism[], ballot: Ballot, stream: Stream): Ballot {
  return steps.reduce((before, step) => step(before, stream), ballot);
}

function mechanism(text: string, key: string): Mechanism {
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

/** Return levels (n, classes) that sum to `units` in each row and are nearest to `units * p` in L1; ties at random. */
export function simplexGrid(p: Float32Array, classes: number, units: number, stream: Stream): Float32Array {
  const levels = new Float32Array(p.length);
  const remainder = new Float64Array(classes);
  for (let at = 0; at < p.length; at += classes) {
    let sum = 0;
    for (let c = 0; c < classes; c++) sum += p[at + c]!;
    let missing = units;
    for (let c = 0; c < classes; c++) {
      const scaled = (p[at + c]! / sum) * units;
      levels[at + c] = Math.floor(scaled + 1e-9); // a multiple that division left just below stays itself
      remainder[c] = scaled - levels[at + c]!;
      missing -= levels[at + c]!;
    }
    const order = Array.from(stream.permutation(classes)).sort((a, b) => remainder[b]! - remainder[a]!);
    for (const c of order.slice(0, missing)) levels[at + c]! += 1;
  }
  return levels;
}

function hard(p: Float32Array, classes: number): Float32Array {
  const one = new Float32Array(p.length);
  for (let at = 0; at < p.length; at += classes) one[at + argmax(p, at, classes)] = 1;
  return one;
}
