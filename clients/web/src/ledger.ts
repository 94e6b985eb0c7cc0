/**
 * What this phone has released, and what that cost: a chain of records that only grows, as in fedkd/privacy/ledger.py.
 *
 * An event is on the disk before anything private is read, the bytes before they leave: a crash costs budget, never
 * privacy, and a retry sends the same bytes. One ledger is for all that this phone ever holds; what an example joined
 * later is charged for too, which is the safe side.
 */

import { fits } from "./accountant.js";
import type { Event } from "./codec.js";
import { Refusal } from "./errors.js";
import { hex, sha256 } from "./random.js";

/** How many records there are, and the hash of the last. */
export interface Head {
  count: number;
  hash: string;
}

/** Where records lie. `append` must be all or nothing, durable when it returns, and fail if the number is taken. */
export interface Store {
  read(): Promise<{ records: string[]; head: Head | null }>;
  append(number: number, record: string, head: Head, payload?: { id: string; bytes: Uint8Array }): Promise<void>;
  payload(id: string): Promise<Uint8Array | null>;
}

/** The most that may be spent in all. */
export interface Budget {
  epsilon: number;
  delta: number;
}

/** What was reserved for one query; `payload` is the SHA-256 of the bytes that left, null if none did. */
export interface Reservation {
  event: Event;
  run: string;
  digest: string;
  time: number;
  payload: string | null;
}

type Body = Record<string, unknown>;
const START = "0".repeat(64);
const NAME = /^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}$/;
const BROKEN = "the ledger of this phone cannot be trusted, nothing is released:";

/** The one writer of a ledger. */
export class Ledger {
  private readonly reservations = new Map<string, Reservation>();
  private readonly underWay = new Set<string>();
  private last = 0;
  private sound = true;

  private constructor(
    private readonly store: Store,
    /** What may be spent; null where the owner has set no limit, and releases are only recorded. */
    readonly budget: Budget | null,
    private readonly clock: () => number,
    private place: Head,
  ) {}

  /**
   * Open the ledger in `store`, or begin it. `owner` names whose it is, `seen` is a head that was kept elsewhere: a
   * ledger that does not contain it was put back. The budget is what it was begun with; another one is refused.
   */
  static async open(
    store: Store,
    given: { owner: string; budget: Budget | null; clock?: () => number; seen?: Head | null },
  ): Promise<Ledger> {
    const { records, head } = await store.read();
    const ledger = new Ledger(store, given.budget, given.clock ?? (() => Date.now() / 1000), { count: 0, hash: START });
    for (const record of records) await ledger.replayRecord(record, given.owner);
    const { count, hash } = ledger.place;
    if ((head?.count ?? 0) !== count || (head !== null && head.hash !== hash)) {
      throw new Refusal(`${BROKEN} it has ${count} records, expected ${head?.count ?? 0}`);
    }
    if (given.seen && (await prefix(records, given.seen.count)) !== given.seen.hash) {
      throw new Refusal(`${BROKEN} it is older than it was, or another one`);
    }
    if (count === 0) {
      const { budget, owner } = given;
      const all = budget && { ...budget, per_run: null, per_period: null, period_days: 30 };
      const about = { version: 1, fingerprint: name("owner", owner), unit: "example", neighbors: "add_remove" };
      await ledger.put({ kind: "open", ...about, budget: all });
    }
    return ledger;
  }

  /** How long the ledger is and its last hash: keep it with a model, and give it to `open` as `seen`. */
  get head(): Head {
    return { ...this.place };
  }

  /** Return what was reserved under this id, whether or not bytes left. */
  find(id: string): Reservation | undefined {
    return this.reservations.get(id);
  }

  /** All that was reserved, in order, for whoever wants to read it. */
  entries(): [string, Reservation][] {
    return [...this.reservations];
  }

  /** Spend `event` on one query: it counts from when this returns, whatever comes after. */
  async reserve(id: string, event: Event, run: string, digest: string): Promise<void> {
    for (const [what, text] of Object.entries({ id, run, digest })) name(what, text);
    if (this.reservations.has(id)) throw new Refusal(`release ${id} was made already`);
    const spent = [...this.reservations.values()].map((entry) => entry.event);
    if (this.budget && !fits(this.budget.epsilon, this.budget.delta, spent, event)) {
      throw new Refusal("the privacy budget of this client does not allow this release");
    }
    await this.put({ kind: "reserve", release_id: id, run, query_digest: digest, event: eventBody(event) });
    this.underWay.add(id);
  }

  /** Go on with what was reserved and never committed: only where nothing was promised, so nothing is drawn twice. */
  resume(id: string): void {
    const found = this.reservations.get(id);
    if (found?.event.kind !== "non_private" || found.payload !== null) {
      throw new Refusal(`release ${id} was lost in a crash, and stays spent`);
    }
    this.underWay.add(id);
  }

  /** Keep the bytes of a release, after which they may leave. */
  async commit(id: string, bytes: Uint8Array): Promise<void> {
    if (!this.underWay.has(id)) throw new Refusal(`release ${id} is not under way: reserve it first, commit it once`);
    const payload = hex(await sha256(bytes));
    await this.put({ kind: "commit", release_id: id, payload }, { id, bytes });
    this.underWay.delete(id);
  }

  /** Return the very bytes that answered this query before; null if the id is new or its answer was lost. */
  async replay(id: string, digest: string): Promise<Uint8Array | null> {
    const found = this.reservations.get(id);
    if (found === undefined || found.payload === null) return null;
    if (found.digest !== digest) throw new Refusal(`release ${id} answered another query; one id stands for one query`);
    const bytes = await this.store.payload(id);
    if (bytes === null || hex(await sha256(bytes)) !== found.payload) {
      throw new Refusal(`the bytes of release ${id} are missing or altered: they cannot be sent again`);
    }
    return bytes;
  }

  private async put(body: Body, payload?: { id: string; bytes: Uint8Array }): Promise<void> {
    if (!this.sound) throw new Refusal("the ledger could not be written: load the page again");
    const now = Math.max(this.clock(), this.last); // a clock that was set back must not bring anything back
    const timed = { ...body, time: now };
    const hash = await link(this.place.hash, timed);
    const head = { count: this.place.count + 1, hash };
    this.sound = false; // until everything is on the disk
    try {
      await this.store.append(head.count, canonical({ body: timed, hash }), head, payload);
    } catch (error) {
      const why = error instanceof Error ? error.name : "unknown error";
      throw new Refusal(`the ledger could not be written (${why}); nothing is released`);
    }
    this.sound = true;
    this.place = head;
    this.add(timed);
  }

  private async replayRecord(record: string, owner: string): Promise<void> {
    const number = this.place.count + 1;
    let found: { body: Body; hash: string };
    try {
      found = JSON.parse(record) as { body: Body; hash: string };
      if (found.hash !== (await link(this.place.hash, found.body))) throw new Error();
      if (!(Number(found.body["time"]) >= this.last) || (found.body["kind"] === "open") !== (number === 1))
        throw new Error();
      this.add(found.body);
    } catch {
      throw new Refusal(`${BROKEN} record ${number} does not continue the chain`);
    }
    this.place = { count: number, hash: found.hash };
    if (number > 1) return;
    const { fingerprint, budget } = found.body as { fingerprint: string; budget: Budget | null };
    if (fingerprint !== owner) throw new Refusal(`this ledger is of ${fingerprint}, got ${owner}`);
    if (budget?.epsilon !== this.budget?.epsilon || budget?.delta !== this.budget?.delta) {
      const say = (one: Budget | null) => (one ? `epsilon ${one.epsilon}, delta ${one.delta}` : "no budget");
      throw new Refusal(`this phone's ledger is under ${say(budget)}, got ${say(this.budget)}`);
    }
  }

  private add(body: Body): void {
    this.last = Number(body["time"]);
    const id = String(body["release_id"]);
    if (body["kind"] === "reserve") {
      if (this.reservations.has(id)) throw new Error();
      const [run, digest] = [String(body["run"]), String(body["query_digest"])];
      this.reservations.set(id, { event: eventIn(body["event"]), run, digest, time: this.last, payload: null });
    } else if (body["kind"] === "commit") {
      const found = this.reservations.get(id);
      if (found === undefined || found.payload !== null) throw new Error();
      found.payload = String(body["payload"]);
    } else if (body["kind"] !== "open") throw new Error();
  }
}

/** A store in memory: for tests, and for whoever does not want to keep anything. */
export function memoryStore(): Store & { records: string[] } {
  const records: string[] = [];
  const payloads = new Map<string, Uint8Array>();
  let head: Head | null = null;
  return {
    records,
    read: async () => ({ records: [...records], head }),
    append: async (number, record, now, payload) => {
      if (number !== records.length + 1) throw new Error("taken");
      records.push(record);
      if (payload) payloads.set(payload.id, payload.bytes.slice());
      head = now;
    },
    payload: async (id) => payloads.get(id) ?? null,
  };
}

/** The one JSON text of a value that counts: keys sorted, no spaces, numbers as Python writes them. */
export function canonical(value: unknown): string {
  if (typeof value === "number") return number(value);
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${entries.map(([key, one]) => `${JSON.stringify(key)}:${canonical(one)}`).join(",")}}`;
}

/** Python has an exponent of at least two digits, and below 1e-4 already. */
function number(value: number): string {
  if (!Number.isFinite(value)) throw new Refusal(`a record cannot hold ${value}`);
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 2 ** 53) return String(value);
  const text = size < 1e-4 || size >= 1e16 ? value.toExponential() : String(value);
  return text.replace(/e([+-])(\d)$/, "e$10$2");
}

async function link(before: string, body: Body): Promise<string> {
  return hex(await sha256(before, canonical(body)));
}

async function prefix(records: string[], count: number): Promise<string> {
  if (count === 0) return START;
  return records.length < count ? "" : (JSON.parse(records[count - 1]!) as { hash: string }).hash;
}

function name(what: string, text: string): string {
  if (!NAME.test(text))
    throw new Refusal(`${what} must be 1 to 200 letters, digits or ._:/@+-, got '${text.slice(0, 40)}'`);
  return text;
}

const CODES = { non_private: 0, no_op: 1, sampled_gaussian: 3 };

function eventBody(event: Event): Body {
  const code = CODES[event.kind];
  if (event.kind !== "sampled_gaussian") return { code };
  return { code, rate: event.rate, noise_multiplier: event.noise, count: event.count, fixed: false };
}

function eventIn(body: unknown): Event {
  const { code, rate, noise_multiplier, count } = body as Record<string, number>;
  if (code === 1) return { kind: "no_op" };
  if (code !== 3) return { kind: "non_private" };
  return { kind: "sampled_gaussian", rate: rate!, noise: noise_multiplier!, count: count! };
}
