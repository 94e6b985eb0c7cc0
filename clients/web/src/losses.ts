/** Losses of one example: the value is returned, and its gradient by the logits written (fedkd/losses.py). */

import { Refusal } from "./errors.js";
import type { Floats } from "./net.js";
import { options, parse } from "./spec.js";
import { argmax } from "./symbols.js";

/** `(z, p, at, dz)`: logits z (C,), targets p from `at` on, gradient dz (C,) to write; returns the loss. */
export type Loss = (z: Floats, p: ArrayLike<number>, at: number, dz: Floats) => number;

const FLOOR = 1e-6;

/** Return the softmax of `z / T` in double precision. */
export function softmax(z: ArrayLike<number>, T = 1): Float64Array {
  const p = Float64Array.from(z);
  const most = p.reduce((a, b) => Math.max(a, b), -Infinity);
  let sum = 0;
  for (let c = 0; c < p.length; c++) sum += p[c] = Math.exp((p[c]! - most) / T);
  for (let c = 0; c < p.length; c++) p[c]! /= sum;
  return p;
}

/** Cross entropy against soft labels, or a label as a row with a single one. */
export const crossEntropy: Loss = (z, p, at, dz) => {
  const q = softmax(z);
  let [loss, mass] = [0, 0];
  for (let c = 0; c < z.length; c++) mass += p[at + c]!;
  for (let c = 0; c < z.length; c++) {
    const target = p[at + c]!;
    if (target > 0) loss -= target * Math.log(Math.max(q[c]!, 1e-300));
    dz[c] = mass * q[c]! - target;
  }
  return loss;
};

/** Return the distillation loss that `text` names: kl, cross_entropy, logit_matching, mae or hard. */
export function distillLoss(text: string): Loss {
  const spec = parse(text);
  const given = options(
    spec,
    spec.name === "kl" ? { temperature: 1, hard: 0, smoothing: 0, floor: FLOOR } : ({} as Record<string, number>),
    "distill",
  );
  switch (spec.name) {
    case "kl":
      return kl(given["temperature"]!, given["hard"]!, given["smoothing"]!, given["floor"]!);
    case "cross_entropy":
      return crossEntropy;
    case "hard":
      return (z, p, at, dz) => crossEntropy(z, oneHot(p, at, z.length), 0, dz);
    case "logit_matching":
      return matched((gap) => [(gap * gap) / 2, gap]);
    case "mae":
      return matched((gap) => [Math.abs(gap), Math.sign(gap)]);
  }
  throw new Refusal(`distill: a phone cannot do '${spec.name}'; set distill = 'kl(temperature=1.0)'`);
}

/** (1 - hard) T^2 KL(p_T || softmax(z / T)) + hard CE(argmax p, z), p_T = softmax(log p / T) (arXiv:1503.02531). */
function kl(T: number, hard: number, smoothing: number, floor: number): Loss {
  return (z, p, at, dz) => {
    const classes = z.length;
    const given = Float64Array.from({ length: classes }, (_, c) => (1 - smoothing) * p[at + c]! + smoothing / classes);
    const target =
      T === 1
        ? given
        : softmax(
            given.map((value) => Math.log(Math.max(value, floor))),
            T,
          );
    const q = softmax(z, T);
    const mass = target.reduce((sum, value) => sum + value, 0);
    let loss = 0;
    for (let c = 0; c < classes; c++) {
      if (target[c]! > 0) loss += T * T * target[c]! * Math.log(target[c]! / Math.max(q[c]!, 1e-300));
      dz[c] = T * (mass * q[c]! - target[c]!);
    }
    if (!hard) return loss;
    const soft = Float64Array.from(dz);
    const other = crossEntropy(z, oneHot(given, 0, classes), 0, dz);
    for (let c = 0; c < classes; c++) dz[c] = (1 - hard) * soft[c]! + hard * dz[c]!;
    return (1 - hard) * loss + hard * other;
  };
}

/** The mean over classes of what `each` makes of the gap of centered logits; it returns the value and its slope. */
function matched(each: (gap: number) => [number, number]): Loss {
  return (z, p, at, dz) => {
    const classes = z.length;
    const logs = Array.from({ length: classes }, (_, c) => Math.log(Math.max(p[at + c]!, FLOOR)));
    const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / classes;
    const [ours, theirs] = [mean(Array.from(z)), mean(logs)];
    let [loss, slopes] = [0, 0];
    for (let c = 0; c < classes; c++) {
      const [value, slope] = each(z[c]! - ours - (logs[c]! - theirs));
      loss += value / classes;
      slopes += slope / classes;
      dz[c] = slope / classes;
    }
    for (let c = 0; c < classes; c++) dz[c]! -= slopes / classes;
    return loss;
  };
}

function oneHot(p: ArrayLike<number>, at: number, classes: number): Float64Array {
  const one = new Float64Array(classes);
  one[argmax(p, at, classes)] = 1;
  return one;
}
