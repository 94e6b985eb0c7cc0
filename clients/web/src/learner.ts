/** A phone's half of a round, as fedkd/client.py does it: query bytes in, release bytes out; no network here. */

import { configOf, learnerOf, type Config, type RunConfig } from "./config.js";
import { decodeQuery, encodeRelease, type Event, type Query } from "./codec.js";
import { Cancelled, Refusal } from "./errors.js";
import { beside, density, neighbors, STATIC, Surroundings, weigh, type Examples } from "./expertise.js";
import { sizeOf, type Inputs } from "./features.js";
import type { Head, Ledger } from "./ledger.js";
import { modelOf, type Model } from "./models.js";
import type { Pace } from "./pace.js";
import { eventOf, type Spending } from "./privacy.js";
import { hex, sha256, Stream, system, type Entropy } from "./random.js";
import { prepare } from "./release.js";

/** What this phone owns, and a checked copy of the transfer set. `key` is its 64-bit number in frames. */
export interface Site {
  key: bigint;
  mine: Examples;
  classes: number;
  transfer: Inputs;
  fingerprint: string;
  /** The run, as the server numbers it: it names releases in the ledger. */
  run: string;
}

/** What is worth remembering between rounds: plain arrays, to be kept by whoever calls and given back. */
export interface State {
  identity: string;
  round: number;
  /** The SHA-256 of the last query. */
  query: string;
  model: Float32Array;
  learner: string;
  /** The SHA-256 of the private data that `expertise` (M,) and `evidence` (M, classes) are of. */
  data: string;
  expertise: Float32Array | null;
  evidence: Float32Array | null;
  ledger: Head;
}

/** A frame to send, or one line that says why there is none and names nothing private. */
export type Answer = { frame: Uint8Array; state: State | null } | { refusal: string };

/** What `answer` may be given besides: how to go about it, where to keep state, and for tests whence noise comes. */
export interface Surround extends Pace {
  /** Kept before the answer counts as made, so that a crash in between loses no training. */
  save?: (state: State) => Promise<void>;
  entropy?: Entropy;
  /** The noise that the server names for DP-SGD; this phone never takes less than it has counted itself. */
  noise?: number;
  /** What is known of the transfer set alone, from a call before: it takes seconds to find. */
  surroundings?: Surroundings;
}

/**
 * Answer one query. The same query again gets the same bytes again, so that a retry releases nothing new.
 *
 * Whatever is wrong comes back as a refusal; `Cancelled` alone is thrown, and leaves no trace but what was reserved.
 */
export async function answer(
  frame: Uint8Array,
  run: RunConfig,
  site: Site,
  state: State | null,
  ledger: Ledger,
  around: Surround = {},
): Promise<Answer> {
  try {
    const config = configOf(run, around.noise);
    checkSite(site, config);
    return await answered(frame, config, site, state, ledger, around);
  } catch (error) {
    if (error instanceof Cancelled) throw error;
    // The text of an error that nobody foresaw may quote private data.
    return { refusal: error instanceof Refusal ? error.message.slice(0, 500) : `unexpected ${(error as Error).name}` };
  }
}

async function answered(
  frame: Uint8Array,
  config: Config,
  site: Site,
  before: State | null,
  ledger: Ledger,
  around: Surround,
): Promise<Answer> {
  const { key, mine, classes, transfer } = site;
  const digest = hex(await sha256(frame));
  const query = decodeQuery(frame, site.fingerprint, transfer.rows, classes);
  const sent = await ledger.replay(nameOf(config, site.run, query.round, digest), digest);
  if (sent) return { frame: sent, state: null };
  const known = recalled(before, config, query.round, digest);
  const spec = learnerOf(config, key, transfer.shape);
  const model = await modelOf(spec, transfer, classes, config, key, around);
  const learner = JSON.stringify(spec);
  if (known?.learner === learner) model.load(known.model);
  const charge = await begin(ledger, config, site.run, query.round, digest); // what is impossible was refused before
  const stream = (purpose: string) => new Stream(config.seed, "client", key, "round", query.round, purpose);
  await listen(model, query, transfer, stream("feedback"), around);
  let event: Event = { kind: "no_op" };
  if (charge.trains && config.protection) {
    event = await model.fitPrivately(mine, config.protection, around.entropy ?? system, around);
  } else if (charge.trains) {
    await model.fit(mine, stream("fit"), around);
    event = { kind: "non_private" };
  }
  const asked = pickInputs(transfer, query.rows);
  const p = await model.predict(asked, around);
  if (!p.every(Number.isFinite)) throw new Refusal("the model says NaN: training diverged; lower learning_rate");
  const data = hex(await sha256(bytesOf(mine.x), bytesOf(mine.y)));
  const own = await opinions(config, site, known?.data === data ? known : null, around);
  const w = own.expertise ? pickRows(own.expertise, query.rows, 1) : weigh(config.expertise, p, classes);
  const told = own.evidence ? beside(p, pickRows(own.evidence, query.rows, classes), classes) : p;
  const plain = { p: told, w, classes, encoding: "float32", weightBits: 0 };
  const release = encodeRelease(prepare(config.release, plain, stream("release")), event, query, key);
  const state: State = {
    identity: config.identity,
    round: query.round,
    query: digest,
    model: model.state(),
    learner,
    data,
    ...own,
    ledger: ledger.head,
  };
  await around.save?.(state);
  await charge.commit(release);
  return { frame: release, state };
}

/** Learn what came back with the query, if anything did. */
async function listen(model: Model, query: Query, transfer: Inputs, stream: Stream, pace: Pace): Promise<void> {
  if (query.feedback === null || query.feedback.rows.length === 0) return;
  await model.distill(pickInputs(transfer, query.feedback.rows), query.feedback.p, stream, pace);
}

/** Return the weights and the evidence of all rows, as they were or anew. */
async function opinions(config: Config, site: Site, known: State | null, around: Surround) {
  const { mine, classes, transfer } = site;
  const where = around.surroundings ?? new Surroundings(transfer);
  let [expertise, evidence] = [known?.expertise ?? null, known?.evidence ?? null];
  if (STATIC.includes(config.expertise.name)) {
    expertise ??= await density(config.expertise, where, mine, transfer.rows, around);
  }
  if (config.evidence.name === "neighbors") {
    evidence ??= await neighbors(config.evidence, where, mine, classes, around);
  }
  return { expertise, evidence };
}

/** What a round may do: whether it trains, that is spends what it is for, and how its answer is kept. */
interface Charge {
  trains: boolean;
  commit(frame: Uint8Array): Promise<void>;
}

/** Return what a release is called in the ledger. Where noise is drawn, a round has one answer, whatever is asked. */
function nameOf(config: Config, run: string, round: number, digest: string): string {
  return `${run}/round/${round}${config.protection ? "" : `/${digest.slice(0, 16)}`}`;
}

/**
 * Begin a round in the ledger, before anything private is read.
 *
 * With a protection the plan of the whole run is charged first, and a round that was begun and lost is never trained
 * again: its noise would be drawn twice. Without one nothing was promised, and it is simply done again.
 */
async function begin(ledger: Ledger, config: Config, run: string, round: number, digest: string): Promise<Charge> {
  const id = nameOf(config, run, round, digest);
  const charge = { trains: true, commit: (frame: Uint8Array) => ledger.commit(id, frame) };
  if (!config.protection) {
    if (ledger.find(id)) ledger.resume(id);
    else await ledger.reserve(id, { kind: "non_private" }, run, digest);
    return charge;
  }
  await settle(ledger, config, config.protection, run, round);
  if (ledger.find(id)) return { trains: false, commit: async () => {} };
  await ledger.reserve(id, { kind: "no_op" }, run, digest);
  return charge;
}

/** Charge the plan of `run` unless it was before; refuse another plan under its name, and rounds beyond it. */
async function settle(ledger: Ledger, config: Config, budget: Spending, run: string, round: number): Promise<void> {
  if (!ledger.budget) throw new Refusal("a run with dp_sgd needs a ledger with a budget: set one on this phone");
  const { steps, rounds } = budget;
  if (round > rounds) throw new Refusal(`round ${round} is not one of the ${rounds} that the budget was spread over`);
  const settled = hex(await sha256(config.identity));
  const [id, event] = [`${run}/plan/0`, eventOf(budget, steps * rounds)];
  const paid = ledger.find(id);
  if (paid === undefined) {
    await ledger.reserve(id, event, run, settled);
    await ledger.commit(id, new Uint8Array(0));
  } else if (paid.digest !== settled || JSON.stringify(paid.event) !== JSON.stringify(event)) {
    throw new Refusal(`run ${run} was begun with other settings, for which another plan was paid`);
  }
}

/** Return what is remembered of this run, or nothing: a query from the past means that the run began anew. */
function recalled(state: State | null, config: Config, round: number, digest: string): State | null {
  if (state === null || state.identity !== config.identity) return null;
  const past = state.query !== digest && state.round >= round;
  return past && !config.protection ? null : state; // what was paid for cannot be learned again
}

/** Return the SHA-256 by which both sides know that inputs are the same: of their type, shape, content and order. */
export async function fingerprintOf(inputs: Inputs): Promise<string> {
  return hex(await sha256(`<f4 (${[inputs.rows, ...inputs.shape].join(", ")})`, bytesOf(inputs.x)));
}

/**
 * Refuse what does not fit together. Where examples are hidden, no single one may decide whether there is an answer: an
 * absurd one then counts as none, or as any other.
 */
function checkSite({ mine, classes, transfer }: Site, config: Config): void {
  if (mine.x.length !== mine.rows * sizeOf(mine.shape) || mine.y.length !== mine.rows) {
    throw new Refusal("this phone's images and labels do not fit together");
  }
  if (mine.shape.join() !== transfer.shape.join()) {
    throw new Refusal(`this phone's images are (${mine.shape.join(", ")}), the run's (${transfer.shape.join(", ")})`);
  }
  if (config.training.views.length && mine.shape.length !== 3) {
    throw new Refusal(`augment: needs images (channels, height, width), got inputs (${mine.shape.join(", ")})`);
  }
  if (config.protection) return;
  if (mine.rows === 0) throw new Refusal("this phone has no images of its own yet");
  if (!mine.y.every((label) => label >= 0 && label < classes))
    throw new Refusal("a label is not one of the run's classes");
  if (!mine.x.every(Number.isFinite)) throw new Refusal("an image of this phone holds NaN or infinity");
}

function pickInputs(inputs: Inputs, rows: Int32Array): Inputs {
  return { x: pickRows(inputs.x, rows, sizeOf(inputs.shape)), rows: rows.length, shape: inputs.shape };
}

function pickRows(values: Float32Array, rows: Int32Array, size: number): Float32Array {
  const picked = new Float32Array(rows.length * size);
  rows.forEach((row, i) => picked.set(values.subarray(row * size, (row + 1) * size), i * size));
  return picked;
}

function bytesOf(values: Float32Array | Int32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}
