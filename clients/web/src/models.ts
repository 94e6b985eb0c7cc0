/** The models that a phone may hold, behind one interface: fit, fit with noise, distill, predict, and be kept. */

import type { Event } from "./codec.js";
import type { Config } from "./config.js";
import { Refusal } from "./errors.js";
import type { Examples } from "./expertise.js";
import type { Inputs } from "./features.js";
import { descendPlainly, descendPrivately, predictLinearly, unitRows, whitened, type Whitened } from "./linear.js";
import { crossEntropy, distillLoss } from "./losses.js";
import { cnn, mlp, type Network } from "./net.js";
import type { Pace } from "./pace.js";
import { descend, type Spending } from "./privacy.js";
import { Stream, type Entropy } from "./random.js";
import { aboveZero, options, type Spec } from "./spec.js";
import { learn, oneHot, predict } from "./training.js";

/** A model of soft labels on inputs of one shape. */
export interface Model {
  /** How many numbers it learns. */
  readonly size: number;
  fit(mine: Examples, stream: Stream, pace: Pace): Promise<void>;
  fitPrivately(mine: Examples, budget: Spending, entropy: Entropy, pace: Pace): Promise<Event>;
  /** Learn soft labels `p` (n, classes) that the server told of public inputs. */
  distill(inputs: Inputs, p: Float32Array, stream: Stream, pace: Pace): Promise<void>;
  predict(inputs: Inputs, pace: Pace): Promise<Float32Array>;
  state(): Float32Array;
  load(state: Float32Array): void;
}

/** Return the untrained model that `spec` names. First weights depend on the seed and the client only. */
export async function modelOf(
  spec: Spec,
  transfer: Inputs,
  classes: number,
  config: Config,
  key: bigint,
  pace: Pace = {},
): Promise<Model> {
  if (spec.name === "linear") {
    const given = options(spec, { features: "shapes", dimensions: 100, temperature: 1 }, "learner");
    if (given.features !== "shapes")
      throw new Refusal(`learner: a phone knows no features '${given.features}', only shapes`);
    aboveZero("learner", "linear", { dimensions: given.dimensions, temperature: given.temperature });
    return linear(await whitened(transfer, given.dimensions, pace), classes, config, given.temperature);
  }
  const sizes = options(spec, spec.name === "cnn" ? { width: 16, hidden: 64 } : { width: 1, hidden: 64 }, "learner");
  aboveZero("learner", spec.name, sizes);
  const { width, hidden } = sizes;
  const made = spec.name === "cnn" ? cnn(transfer.shape, classes, width, hidden) : mlp(transfer.shape, classes, hidden);
  return network(made.initialize(new Stream(config.seed, "client", key, "init")), config);
}

function network(net: Network, config: Config): Model {
  const { training, distill, feedbackEpochs } = config;
  return {
    size: net.theta.length,
    async fit(mine, stream, pace) {
      const doing = "training on this phone's images";
      await learn(net, mine, oneHot(mine.y, net.classes), crossEntropy, training, stream, pace, doing);
    },
    fitPrivately: (mine, budget, entropy, pace) => descend(net, mine, budget, entropy, pace),
    async distill(inputs, p, stream, pace) {
      const settings = { ...training, epochs: feedbackEpochs };
      await learn(net, inputs, p, distillLoss(distill), settings, stream, pace, "learning what the others know");
    },
    predict: (inputs, pace) => predict(net, inputs, pace),
    state: () => Float32Array.from(net.theta),
    load: (state) => fill(net.theta, state),
  };
}

function linear(space: Whitened, classes: number, config: Config, temperature: number): Model {
  let weights: Float64Array = new Float64Array(space.public.columns * classes);
  const rows = (inputs: Inputs, pace: Pace) => unitRows(space.components, inputs, pace);
  return {
    size: weights.length,
    async fit(mine, _, pace) {
      const p = oneHot(mine.y, classes);
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
    load: (state) => fill(weights, state),
  };
}

function fill(weights: { length: number; set(values: Float32Array): void }, state: Float32Array): void {
  if (state.length !== weights.length) {
    throw new Refusal(`this model has ${state.length} weights, expected ${weights.length}`);
  }
  weights.set(state);
}
