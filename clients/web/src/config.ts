/** The run config of the server, checked whole: what a phone cannot do is refused before anything starts. */

import { Refusal } from "./errors.js";
import { evidenceOf, expertiseOf } from "./expertise.js";
import { distillLoss } from "./losses.js";
import { protectionOf, spending, type Spending } from "./privacy.js";
import { chain } from "./release.js";
import { parse, split, type Spec } from "./spec.js";
import { scheduleOf, viewsOf, type Training } from "./training.js";

/** The flat, kebab-case form that Flower carries. */
export type RunConfig = Readonly<Record<string, string | number | boolean>>;

/** What a phone needs of it, checked. */
export interface Config {
  /** Equal for two configurations under which what was learned and said may be kept. */
  identity: string;
  seed: number;
  learner: string;
  expertise: Spec;
  evidence: Spec;
  release: ReturnType<typeof chain>;
  training: Training;
  distill: string;
  feedbackEpochs: number;
  /** Null where nothing is promised. */
  protection: Spending | null;
}

/** Keys that say how long to go on, how long to wait and where to write, and so decide no result. */
const FREE = ["output", "resume", "rounds", "deadline", "grace", "pooled", "record", "resolved"];
const SAMPLES_ONLY = ["uniform", "confidence", "entropy"];

/**
 * Return the checked configuration; throw a `Refusal` with one line that names the key to change.
 *
 * `noise` is what the server says that DP-SGD needs, if it does: a phone counts for itself and takes the larger.
 */
export function configOf(run: RunConfig, noise = 0): Config {
  if (run["resolved"] !== true) throw new Refusal("the run config is not complete: expected resolved = true");
  const text = (key: string) => given(run, key, "string") as string;
  const number = (key: string) => given(run, key, "number") as number;
  if (text("keys") !== "samples") throw new Refusal(`keys: a phone answers about samples only, got '${text("keys")}'`);
  if (text("attack") !== "none") throw new Refusal("attack: is for simulations; a phone has data of its own");
  chain(text("broadcast"), "broadcast");
  distillLoss(text("distill"));
  const dpSgd = protectionOf(text("protect"));
  const [expertise, evidence] = [expertiseOf(text("expertise")), evidenceOf(text("evidence"))];
  const [epsilon, delta, rounds, epochs] = [
    number("epsilon"),
    number("delta"),
    number("rounds"),
    number("local-epochs"),
  ];
  if (dpSgd && evidence.name !== "none") {
    throw new Refusal(`evidence: '${evidence.name}' reads private data beside the model; set evidence = 'none'`);
  }
  if (dpSgd && !SAMPLES_ONLY.includes(expertise.name)) {
    throw new Refusal(
      `expertise: '${expertise.name}' reads private data, which dp_sgd does not cover; set expertise = 'uniform'`,
    );
  }
  const fixed = Object.entries(run).filter(([key]) => !FREE.includes(key) || (key === "rounds" && dpSgd !== null));
  return {
    identity: JSON.stringify(fixed.sort(([a], [b]) => (a < b ? -1 : 1))),
    seed: number("seed"),
    learner: text("learner"),
    expertise,
    evidence,
    release: chain(text("release"), "release"),
    training: {
      epochs,
      batchSize: number("batch-size"),
      learningRate: number("learning-rate"),
      schedule: scheduleOf(text("schedule")),
      views: viewsOf(text("augment")),
    },
    distill: text("distill"),
    feedbackEpochs: number("feedback-epochs"),
    protection: dpSgd && spending(dpSgd, { epsilon, delta, rounds, epochs }, noise),
  };
}

/** Learners that a phone has. */
export const LEARNERS = ["cnn", "mlp", "linear"];

/**
 * Return the learner of client `key`: its turn in the mix if a phone has that one, else the first that it has, else one
 * that suits the inputs. Nobody else must know which: only soft labels leave.
 */
export function learnerOf(config: Config, key: bigint, shape: readonly number[]): Spec {
  const image = shape.length === 3 && Math.min(shape[1]!, shape[2]!) >= 4;
  const mix = split(config.learner, ",");
  const turn = mix[Number(key % BigInt(mix.length))]!;
  const can = (text: string) => {
    const { name } = readable(text);
    return LEARNERS.includes(name) && (name !== "cnn" || image);
  };
  return parse([turn, ...mix].find(can) ?? (image ? "cnn" : "mlp"));
}

/** Parse a learner; a user's own `module:function` is none of ours and reads like nothing. */
function readable(text: string): Spec {
  return /^[A-Za-z_]\w*(\(.*\))?$/s.test(text) ? parse(text) : { name: "", options: {} };
}

function given(run: RunConfig, key: string, type: string): unknown {
  const value = run[key];
  if (typeof value !== type) throw new Refusal(`run config: '${key}' must be a ${type}, got ${value ?? "nothing"}`);
  return value;
}
