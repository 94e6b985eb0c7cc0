// src/worker.ts
import { openStore } from "./protocol.js";
import {
  Ledger,
  Surroundings,
  answer,
  openStore as openLedgerStore
} from "./science.js";
var store = openStore();
var known = null;
var OWNER = "phone";
async function ledgerOf(job, state) {
  const open = await store;
  const kept = await open.get(`budget.${OWNER}`);
  const guarded = job.config["protect"] !== "none";
  if (kept === null && guarded)
    return "this phone's data was used without a guarantee before; that cannot be undone by a later one";
  const limit = await open.get("limit") ?? Number(job.config["epsilon"]);
  const budget = kept !== void 0 ? kept : guarded ? { epsilon: limit, delta: Number(job.config["delta"]) } : null;
  await open.put({ [`budget.${OWNER}`]: budget });
  return Ledger.open(await openLedgerStore(`fedkd-ledger-${OWNER}`), { owner: OWNER, budget, seen: state?.ledger ?? null });
}
async function work(job) {
  const open = await store;
  const [about, transfer, data, state] = await Promise.all([
    open.get("agreed"),
    open.get("transfer"),
    open.get("data"),
    open.get("state")
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
    run: job.run
  };
  const said = await answer(job.frame, job.config, site, state ?? null, ledger, {
    progress: (part, share) => self.postMessage({ share, part }),
    save: (next) => open.put({ state: next }),
    surroundings: known.surroundings
  });
  return "refusal" in said ? said : { frame: said.frame.slice() };
}
self.onmessage = ({ data }) => {
  work(data).then(
    (result) => self.postMessage(result),
    // Its text may quote what is private.
    (error) => self.postMessage({ refusal: error.name === "Refusal" ? error.message : `unexpected ${error.name}` })
  );
};
