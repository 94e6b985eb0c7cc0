/** The thread that computes. It reads what it needs from the phone's own storage, and says how far it is. */
import { type About, type Job, type PrivateData, type Result, type TransferSet, openStore } from "./protocol.js";
import {
  type Budget,
  Ledger,
  type State,
  Surroundings,
  answer,
  openStore as openLedgerStore,
} from "./science.js";

const store = openStore();
let known: { readonly fingerprint: string; readonly surroundings: Surroundings } | null = null;

/** Whose the ledger is: this phone's owner, whatever examples are added or taken away. */
const OWNER = "phone";

/** The one ledger of this phone, for all runs, under the limit that it was begun with. */
async function ledgerOf(job: Job, state: State | undefined): Promise<Ledger | string> {
  const open = await store;
  const kept = await open.get<Budget | null>(`budget.${OWNER}`);
  const guarded = job.config["protect"] !== "none";
  if (kept === null && guarded)
    return "this phone's data was used without a guarantee before; that cannot be undone by a later one";
  const limit = (await open.get<number>("limit")) ?? Number(job.config["epsilon"]);
  const budget = kept !== undefined ? kept : guarded ? { epsilon: limit, delta: Number(job.config["delta"]) } : null;
  await open.put({ [`budget.${OWNER}`]: budget });
  return Ledger.open(await openLedgerStore(`fedkd-ledger-${OWNER}`), { owner: OWNER, budget, seen: state?.ledger ?? null });
}

/** Return the answer to a question, or one line that says why there is none. */
async function work(job: Job): Promise<Result> {
  const open = await store;
  const [about, transfer, data, state] = await Promise.all([
    open.get<About>("agreed"),
    open.get<TransferSet>("transfer"),
    open.get<PrivateData>("data"),
    open.get<State>("state"),
  ]);
  if (!about || !transfer || !data) return { refusal: "this phone has no data" };
  const ledger = await ledgerOf(job, state);
  if (typeof ledger === "string") return { refusal: ledger };
  const inputs = { x: transfer.x, rows: about.rows, shape: about.shape };
  if (known?.fingerprint !== transfer.fingerprint)
    known = { fingerprint: transfer.fingerprint, surroundings: new Surroundings(inputs) };
  const site = {
    key: BigInt(job.key),
    mine: { x: data.x, y: data.y, rows: data.y.length, shape: data.shape },
    classes: about.classes,
    transfer: inputs,
    fingerprint: transfer.fingerprint,
    run: job.run,
  };
  const said = await answer(job.frame, job.config, site, state ?? null, ledger, {
    progress: (part, share) => self.postMessage({ share, part }),
    save: (next) => open.put({ state: next }),
    surroundings: known.surroundings,
  });
  return "refusal" in said ? said : { frame: said.frame.slice() };
}

self.onmessage = ({ data }: MessageEvent<Job>) => {
  work(data).then(
    (result) => self.postMessage(result),
    // Its text may quote what is private.
    (error: Error) =>
      self.postMessage({ refusal: error.name === "Refusal" ? error.message : `unexpected ${error.name}` }),
  );
};
