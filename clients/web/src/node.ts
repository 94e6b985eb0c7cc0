/**
 * The life of a node: take a question, answer it, send the answer. Each step is on the disk before the next begins, so
 * that a reload, a crash or a dead line loses nothing: a question that was taken is kept until it is answered, and an
 * answer, once made, is sent as it is until the server has it.
 */
import { type Config, differs } from "./about.js";
import { type Fleet, RUN_IS_OVER, Refused, Unreachable, backOff } from "./fleet.js";
import { ObjectError, type Piece, message } from "./objects.js";
import { type Bytes, type Metadata, ProtoError, type Pulled, type Tree } from "./proto.js";
import { type Store } from "./store.js";

/** A frame to answer, and what is known around it. */
export interface Job {
  readonly frame: Bytes;
  /** The round of our last answer that the server has; 0 for none. */
  readonly acknowledged: number;
  readonly config: Config;
  readonly run: string;
  readonly key: string;
}

export type Result = { readonly frame: Bytes } | { readonly refusal: string };

/** What this phone sent, or did not, and why; the list that its owner sees. */
export interface Sent {
  readonly round: number;
  readonly run: string;
  /** When, in milliseconds of this phone's clock, and how long it took to compute, in seconds. */
  readonly at: number;
  readonly seconds: number;
  /** Bytes of the frame, and of all requests of the round. */
  readonly frame: number;
  readonly bytes: number;
  /** The first digits of the frame's SHA-256. */
  readonly digest: string;
  readonly refusal: string | null;
  readonly delivered: boolean;
}

export type Happening =
  | { readonly kind: "waiting" }
  | { readonly kind: "training"; readonly round: number }
  | { readonly kind: "sending"; readonly round: number }
  | { readonly kind: "sent"; readonly sent: Sent }
  | { readonly kind: "unreachable"; readonly line: string }
  | { readonly kind: "over" }
  | { readonly kind: "stranger"; readonly line: string }
  | { readonly kind: "broken"; readonly line: string };

interface Inbox extends Pulled {
  readonly question?: { readonly frame: Bytes | null; readonly acknowledged: number; readonly refusal: string | null };
}

interface Outbox {
  readonly metadata: Metadata;
  readonly tree: Tree;
  readonly parts: ReadonlyMap<string, Bytes>;
  readonly sent: Sent;
}

export interface Means {
  readonly fleet: Fleet;
  readonly store: Store;
  /** The settings that this phone's owner agreed to. */
  readonly agreed: Config;
  readonly answer: (job: Job) => Promise<Result>;
  readonly roundOf: (frame: Bytes) => number;
  readonly tell: (what: Happening) => void;
  /** Kept once the page may take a question: it is in sight. What is made already is sent anyway. */
  readonly ready: () => Promise<void>;
  readonly wait: (milliseconds: number) => Promise<void>;
  readonly digest: (frame: Bytes) => Promise<string>;
}

const QUERY = "query.release";
const SALT = 16;
/** Milliseconds between two looks for a question: short at first, longer while nothing comes. */
const SOONEST = 700,
  LATEST = 5000;
/** Milliseconds between signs of life, and between looks whether a run still goes on. */
const ALIVE = 1_400_000,
  OVER = 3000;

export class Node {
  private alive = -Infinity;
  private looked = 0;
  private ended = false;

  constructor(
    private readonly means: Means,
    private readonly now: () => number = Date.now,
  ) {}

  stop(): void {
    this.ended = true;
  }

  /** Work until stopped, until the run is over, or until nothing more can be done. */
  async live(): Promise<void> {
    const { tell, wait } = this.means;
    let failures = 0,
      idle = 0;
    while (!this.ended) {
      try {
        const turn = await this.turn();
        if (turn === "over") return tell({ kind: "over" });
        failures = 0;
        idle = turn === "worked" ? 0 : idle + 1;
        if (idle === 1) tell({ kind: "waiting" });
        if (idle) await wait(Math.min(LATEST, SOONEST * 1.3 ** idle));
      } catch (error) {
        if (this.ended) return;
        if (!(error instanceof Unreachable)) return tell(final(error));
        // A server ends with its run.
        if (failures > 2 && (await this.means.store.get("complete"))) return tell({ kind: "over" });
        tell({ kind: "unreachable", line: error.message });
        this.alive = -Infinity; // a server that restarted may have forgotten that we are here
        await wait(1000 * backOff(failures++));
      }
    }
  }

  /** One step: send what is ready, else answer what was asked, else ask. */
  async turn(): Promise<"worked" | "idle" | "over"> {
    const { fleet, store, ready } = this.means;
    const outbox = await store.get<Outbox>("outbox");
    if (!outbox) await ready();
    if (this.ended) return "worked";
    if (this.now() - this.alive > ALIVE) {
      await fleet.appear();
      this.alive = this.now();
    }
    if (outbox) return this.send(outbox);
    const inbox = await store.get<Inbox>("inbox");
    if (!inbox) return this.take();
    if (fleet.now() > inbox.metadata.createdAt + inbox.metadata.ttl) {
      await store.put({ inbox: undefined }); // nobody waits for this answer any more
      return "worked";
    }
    return inbox.question ? this.answer(inbox, inbox.question) : this.open(inbox);
  }

  /** Ask for a question. The server gives it once, so it is kept before anything else is done. */
  private async take(): Promise<"worked" | "idle" | "over"> {
    const { fleet, store } = this.means;
    const pulled = await fleet.pull();
    if (pulled) {
      await store.put({ inbox: pulled, run: pulled.metadata.runId });
      return "worked";
    }
    const run = await store.get<bigint>("run");
    const often = (await store.get("complete")) ? 1 : 5;
    if (run === undefined || this.now() - this.looked < OVER * often) return "idle";
    this.looked = this.now();
    return (await this.configOf(run)) === null ? "over" : "idle";
  }

  /** Fetch what a question consists of. */
  private async open(inbox: Inbox): Promise<"worked" | "over"> {
    const { fleet, store } = this.means,
      { metadata, tree } = inbox;
    let question: Inbox["question"];
    try {
      const { records, arrays } = await fleet.objects(metadata.runId, tree);
      const record = records["query"],
        frame = record?.["frame"] ?? arrays["frame"],
        known = record?.["acknowledged"];
      question =
        metadata.type === QUERY && frame instanceof Uint8Array
          ? { frame, acknowledged: typeof known === "bigint" ? Number(known) : 0, refusal: null }
          : {
              frame: null,
              acknowledged: 0,
              refusal: `this phone answers ${QUERY} with a frame, and nothing else; got ${metadata.type.slice(0, 60)}`,
            };
    } catch (error) {
      if (isOver(error)) return this.drop();
      if (!(error instanceof ObjectError || error instanceof ProtoError)) throw error;
      question = { frame: null, acknowledged: 0, refusal: `a question that cannot be read: ${error.message}` };
    }
    await store.put({ inbox: { ...inbox, question } });
    // Only now may the server forget it: a page that is closed in between still has all of it.
    await fleet.confirm(metadata.runId, metadata.messageId).catch((error: unknown) => {
      if (!isOver(error)) throw error;
    });
    return "worked";
  }

  private async answer(inbox: Inbox, question: NonNullable<Inbox["question"]>): Promise<"worked" | "over"> {
    const { fleet, store, tell } = this.means,
      began = this.now(),
      before = fleet.sent;
    const config = await this.configOf(inbox.metadata.runId);
    if (config === null) return this.drop();
    let round = 0,
      result: Result;
    const { frame } = question;
    if (frame === null) result = { refusal: question.refusal ?? "a question without a frame" };
    else {
      round = roundOf(this.means, frame);
      tell({ kind: "training", round });
      const changed = differs(this.means.agreed, config);
      const job = {
        frame,
        acknowledged: question.acknowledged,
        config,
        run: String(config["run-name"] || inbox.metadata.runId), // the same when the run goes on after a crash
        key: String(fleet.id),
      };
      result = changed
        ? { refusal: `the run's ${changed} is not what this phone's owner agreed to` }
        : await this.means.answer(job);
    }
    if (this.ended) return "worked"; // stopped meanwhile: asked again, the learner says the same again
    const metadata = reply(inbox.metadata, fleet.now(), fleet.id);
    const piece =
      "frame" in result
        ? await message(metadata, "release", { salt: crypto.getRandomValues(new Uint8Array(SALT)) }, result.frame)
        : await message(metadata, "refusal", { client: String(fleet.id), error: result.refusal.slice(0, 500) });
    const sent: Sent = {
      round,
      run: String(inbox.metadata.runId),
      at: this.now(),
      seconds: (this.now() - began) / 1000,
      frame: "frame" in result ? result.frame.length : 0,
      bytes: fleet.sent - before,
      digest: "frame" in result ? (await this.means.digest(result.frame)).slice(0, 12) : "",
      refusal: "frame" in result ? null : result.refusal,
      delivered: false,
    };
    const outbox: Outbox = { metadata, tree: piece.tree, parts: piece.parts, sent };
    await store.put({ inbox: undefined, outbox });
    return "worked";
  }

  private async send(outbox: Outbox): Promise<"worked" | "over"> {
    const { fleet, store, tell } = this.means,
      before = fleet.sent,
      { metadata, sent } = outbox;
    tell({ kind: "sending", round: sent.round });
    const piece: Piece = { tree: outbox.tree, parts: outbox.parts };
    let delivered = true;
    if (fleet.now() > metadata.createdAt + metadata.ttl) delivered = false;
    else
      try {
        await fleet.push(metadata, piece);
      } catch (error) {
        if (!isOver(error)) throw error;
        delivered = false;
      }
    const done: Sent = { ...sent, bytes: sent.bytes + fleet.sent - before, delivered };
    const last = delivered && sent.refusal === null && sent.round >= Number(this.means.agreed["rounds"]);
    await store.put({
      outbox: undefined,
      ...(last ? { complete: true } : {}),
      [`sent.${String(sent.at).padStart(15, "0")}`]: done,
    });
    tell({ kind: "sent", sent: done });
    return delivered ? "worked" : "over";
  }

  /** The settings of a run; null once it is over. They do not change while it runs. */
  private async configOf(run: bigint): Promise<Config | null> {
    try {
      return await this.means.fleet.config(run);
    } catch (error) {
      if (isOver(error)) return null;
      throw error;
    }
  }

  private async drop(): Promise<"over"> {
    await this.means.store.put({ inbox: undefined });
    return "over";
  }
}

const isOver = (error: unknown): boolean => error instanceof Refused && error.code === RUN_IS_OVER;

function roundOf({ roundOf: read }: Means, frame: Bytes): number {
  try {
    return read(frame);
  } catch {
    return 0; // the learner will say what is wrong with the frame
  }
}

function final(error: unknown): Happening {
  const line = error instanceof Error ? error.message : String(error);
  return error instanceof Refused && [401, 403, 409, 412].includes(error.status)
    ? { kind: "stranger", line }
    : { kind: "broken", line };
}

/** The metadata of a reply, which may live no longer than its question. */
export function reply(to: Metadata, now: number, self: bigint): Metadata {
  return {
    runId: to.runId,
    messageId: "",
    source: self,
    target: to.source,
    replyTo: to.messageId,
    group: to.group,
    ttl: to.createdAt + to.ttl - now,
    type: to.type,
    createdAt: now,
    sourceTask: to.targetTask,
    targetTask: to.sourceTask,
  };
}
