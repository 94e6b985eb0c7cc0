/** How much a ballot counts, row by row, and what labeled examples say beside the model (fedkd/expertise, evidence). */

import { Refusal } from "./errors.js";
import type { Inputs } from "./features.js";
import type { Pace } from "./pace.js";
import { around, count, meanDigamma, nearest, pick, spaceOf, type Around, type Rows, type Space } from "./space.js";
import { aboveZero, options, parse, type Spec } from "./spec.js";

/** Private inputs and their labels. */
export interface Examples extends Inputs {
  y: Int32Array;
}

const RANGE = 80;
const ABSENT = -60;
const DENSITY = { neighbors: 5, dimensions: 80, sharpness: 1.5, concentration: 100 };
const NEIGHBORS = { sharpness: 0.75, neighbors: 5, dimensions: 80, concentration: 100 };
/** Members that read the data and not the predictions: computed once for all rounds, for all rows. */
export const STATIC = ["density"];

/** Return the checked spec of `expertise`; refuse a member that a phone does not have. */
export function expertiseOf(text: string): Spec {
  const spec = parse(text);
  const known: Record<string, Record<string, number>> = {
    uniform: {},
    confidence: { power: 1 },
    entropy: { floor: 0.01 },
    density: DENSITY,
  };
  return checked(spec, known, "expertise", "uniform");
}

/** Return the checked spec of `evidence`; refuse a member that a phone does not have. */
export function evidenceOf(text: string): Spec {
  return checked(parse(text), { none: {}, neighbors: NEIGHBORS }, "evidence", "none");
}

function checked(spec: Spec, known: Record<string, Record<string, number>>, key: string, other: string): Spec {
  const defaults = known[spec.name];
  if (defaults === undefined) {
    const names = Object.keys(known).join(", ");
    throw new Refusal(`${key}: a phone cannot do '${spec.name}', only ${names}; set ${key} = '${other}'`);
  }
  const given = options(spec, defaults, key);
  aboveZero(key, spec.name, given);
  return { name: spec.name, options: given };
}

/** Return the weights (n,) of members that look at soft labels `p` (n, classes) only. */
export function weigh(spec: Spec, p: Float32Array, classes: number): Float32Array {
  return Float32Array.from({ length: p.length / classes }, (_, i) => {
    const row = p.subarray(i * classes, (i + 1) * classes);
    if (spec.name === "confidence") return Math.max(...row) ** (spec.options["power"] as number);
    if (spec.name !== "entropy") return 1;
    const bits = row.reduce((sum, value) => sum - value * Math.log(Math.max(value, 1e-12)), 0);
    return 1 / (Math.max(bits, 0) / Math.log(classes) + (spec.options["floor"] as number));
  });
}

/** What is known of the transfer set alone: kept, so that it is computed once for expertise and evidence. */
export class Surroundings {
  private spaces = new Map<number, Promise<Space>>();
  private densities = new Map<string, Promise<Around>>();

  constructor(private readonly transfer: Inputs) {}

  space(dimensions: number, pace: Pace): Promise<Space> {
    return kept(this.spaces, dimensions, () => spaceOf(this.transfer, dimensions, pace));
  }

  around(dimensions: number, neighbors: number, pace: Pace): Promise<Around> {
    const make = async () => around((await this.space(dimensions, pace)).public, neighbors, pace);
    return kept(this.densities, `${dimensions} ${neighbors}`, make);
  }
}

/** Keep what `make` promises under `key`, unless it fails: whoever was cancelled may begin again. */
function kept<K, V>(cache: Map<K, Promise<V>>, key: K, make: () => Promise<V>): Promise<V> {
  const found = cache.get(key);
  if (found) return found;
  const made = make();
  cache.set(key, made);
  made.catch(() => cache.delete(key));
  return made;
}

/**
 * Weights (M,) of all rows by the density of the examples over that of the transfer set, to a power.
 *
 * log(n_k p_k(x) / (n p(x))) from distances to the nearest examples (Loftsgaarden and Quesenberry, 1965), as
 * fedkd/expertise/density.py has it, so weights of phones and other clients are on one scale.
 */
export async function density(spec: Spec, where: Surroundings, mine: Inputs, rows: number, pace: Pace = {}) {
  const given = spec.options as typeof DENSITY;
  if (mine.rows === 0) return new Float32Array(rows);
  const space = await where.space(given.dimensions, pace);
  const own = await space.project(mine, pace);
  const ratios = await logRatios(space.public, own, where, given, pace);
  return ratios.map((ratio) => Math.exp(Math.min(Math.max(given.sharpness * ratio, -RANGE), RANGE)));
}

/** Evidence (M, classes): the log density ratio of each class of the examples, times the sharpness. */
export async function neighbors(spec: Spec, where: Surroundings, mine: Examples, classes: number, pace: Pace = {}) {
  const given = spec.options as typeof NEIGHBORS;
  const space = await where.space(given.dimensions, pace);
  const rows = count(space.public);
  const e = new Float32Array(rows * classes).fill(given.sharpness * ABSENT);
  if (mine.rows === 0) return e;
  const all = await space.project(mine, pace);
  const found: (Float32Array | null)[] = [];
  for (let c = 0; c < classes; c++) {
    const own = pick(
      all,
      Array.from(mine.y.keys()).filter((i) => mine.y[i] === c),
    );
    found.push(count(own) ? await logRatios(space.public, own, where, given, pace) : null);
  }
  for (let i = 0; i < rows; i++) {
    const held = found.filter((ratios) => ratios !== null).map((ratios) => ratios[i]!);
    const absent = Math.min(ABSENT, ...held); // nobody believes more in what was never seen
    for (let c = 0; c < classes; c++) e[i * classes + c] = given.sharpness * (found[c]?.[i] ?? absent);
  }
  return e;
}

/** Return ballots in proportion to p_c exp(e_c), both (n, classes). A class that `p` rules out stays ruled out. */
export function beside(p: Float32Array, e: Float32Array, classes: number): Float32Array {
  const out = new Float32Array(p.length);
  for (let at = 0; at < p.length; at += classes) {
    const votes = Array.from({ length: classes }, (_, c) => Math.log(p[at + c]!) + e[at + c]!);
    const most = Math.max(...votes);
    const shares = votes.map((vote) => Math.exp(vote - most));
    const total = shares.reduce((sum, share) => sum + share, 0);
    shares.forEach((share, c) => (out[at + c] = share / total));
  }
  return out;
}

async function logRatios(
  all: Rows,
  own: Rows,
  where: Surroundings,
  given: { neighbors: number; dimensions: number; concentration: number },
  pace: Pace,
): Promise<Float32Array> {
  const theirs = await where.around(given.dimensions, given.neighbors, pace);
  const k = Math.min(given.neighbors, count(own));
  const r = await nearest(all, own, k, pace);
  const most = Math.log((given.concentration * count(own)) / theirs.rows);
  return theirs.logR.map((logR, i) => {
    let mean = 0;
    // An equal sample is at distance zero, which has no logarithm.
    for (let j = 0; j < k; j++) mean += Math.log(Math.max(r[i * k + j]!, 0.1 * Math.exp(logR))) / k;
    return Math.min(meanDigamma(k) - theirs.meanDigamma - theirs.dimension * (mean - logR), most);
  });
}
