/** How a phone protects: what it can, what it refuses, how much noise a run needs, and DP-SGD (fedkd/protect.py). */

import { calibrated } from "./accountant.js";
import type { Event } from "./codec.js";
import { Refusal } from "./errors.js";
import { sizeOf } from "./features.js";
import type { Examples } from "./expertise.js";
import { crossEntropy } from "./losses.js";
import type { Network } from "./net.js";
import { pacer, type Pace } from "./pace.js";
import { coins, normals, type Entropy } from "./random.js";
import { aboveZero, options, parse } from "./spec.js";

/** DP-SGD as the run config asks for it. */
export interface DpSgd {
  rate: number;
  clip: number;
  examples: number;
  step: number;
}

/** What a run does to each example: `rounds` of `steps` with noise of `noise` times the clip. */
export interface Spending extends DpSgd {
  noise: number;
  steps: number;
  rounds: number;
}

/** What `count` steps of a run are, as an event. */
export function eventOf({ rate, noise }: Spending, count: number): Event {
  return { kind: "sampled_gaussian", rate, noise, count };
}

const DP_SGD = { rate: 0.1, clip: 0.1, examples: 100, step: 1.5 };
const MOMENTUM = 0.9;
const PACE = 2 / 15;
/** Gradients are cut to this much less than the clip, relatively, for what rounding in single precision adds. */
const HAIR = 5e-6;

/** Return the protection that `protect` names, null for none; refuse what a phone cannot give. */
export function protectionOf(protect: string): DpSgd | null {
  const spec = parse(protect);
  if (spec.name === "none") return options(spec, {}, "protect") && null;
  if (spec.name !== "dp_sgd") {
    throw new Refusal(
      `protect: a phone cannot do '${spec.name}', only none and dp_sgd; use another device for this run`,
    );
  }
  const given = options(spec, DP_SGD, "protect");
  aboveZero("protect", "dp_sgd", given);
  if (given.rate > 1) throw new Refusal(`protect: dp_sgd: 'rate' must be at most 1, got ${given.rate}`);
  return given;
}

/** Return what a whole run spends, with noise that this phone has found itself; `told` by the server may only add. */
export function spending(
  protection: DpSgd,
  run: { epsilon: number; delta: number; rounds: number; epochs: number },
  told = 0,
): Spending {
  const { epsilon, delta, rounds, epochs } = run;
  if (!(epsilon > 0 && epsilon < Infinity)) throw new Refusal(`epsilon: dp_sgd needs a budget above 0, got ${epsilon}`);
  if (!(delta > 0 && delta < 1)) throw new Refusal(`delta: must be in (0, 1), got ${delta}`);
  if (!(epochs >= 1)) throw new Refusal("local-epochs: 0 learns nothing; dp_sgd needs at least 1");
  const steps = Math.max(1, Math.round(epochs / protection.rate));
  const noise = Math.max(calibrated(epsilon, delta, protection.rate, steps * rounds), told);
  return { ...protection, noise, steps, rounds };
}

/**
 * Take the steps of one round of DP-SGD on a network (arXiv:1607.00133) and return the event that they were.
 *
 * Every example takes part by a coin of its own. Its gradient is cut to the clip, noise falls on the sum, and that is
 * divided by a batch that is expected and not counted. Momentum, and steps that shrink to nothing, as in
 * fedkd/learner/private_torch.py.
 */
export async function descend(
  network: Network,
  mine: Examples,
  budget: Spending,
  entropy: Entropy,
  pace: Pace = {},
): Promise<Event> {
  const { theta } = network;
  const { rate, clip, examples, step, steps, noise } = budget;
  const velocity = new Float64Array(theta.length);
  const rest = pacer(pace, "training with noise");
  for (let t = 0; t < steps; t++) {
    await rest(t / steps);
    const chosen = rate === 1 ? Int32Array.from(mine.y.keys()) : coins(entropy, mine.rows, rate);
    const total = await clippedSum(network, mine, chosen, clip, () => rest(t / steps));
    const draws = normals(entropy, total.length);
    const move = PACE * step * (1 - t / steps);
    for (let i = 0; i < theta.length; i++) {
      velocity[i] = MOMENTUM * velocity[i]! + (total[i]! + noise * clip * draws[i]!) / (clip * rate * examples);
      theta[i]! -= move * velocity[i]!;
    }
  }
  return eventOf(budget, steps);
}

/** Return the sum of the gradients of cross entropy of the `chosen` examples, each of norm at most `clip`. */
export async function clippedSum(
  network: Network,
  mine: Examples,
  chosen: Int32Array,
  clip: number,
  rest: () => Promise<void> = async () => {},
): Promise<Float64Array> {
  const total = new Float64Array(network.theta.length);
  const gradient = network.zeros();
  const size = sizeOf(mine.shape);
  const dz = new Float64Array(network.classes);
  const label = new Float32Array(network.classes);
  for (const row of chosen) {
    await rest();
    gradient.fill(0);
    label.fill(0);
    label[mine.y[row]!] = 1;
    crossEntropy(network.forward(mine.x.subarray(row * size, (row + 1) * size)), label, 0, dz);
    network.backward(dz, gradient);
    let squares = 0;
    for (let i = 0; i < gradient.length; i++) squares += gradient[i]! * gradient[i]!;
    // An example of absurd inputs would tell of itself by spoiling the model: it counts as none.
    if (!Number.isFinite(squares)) continue;
    const factor = Math.min(1, (clip * (1 - HAIR)) / Math.max(Math.sqrt(squares), 1e-30));
    for (let i = 0; i < gradient.length; i++) total[i]! += factor * gradient[i]!;
  }
  return total;
}
