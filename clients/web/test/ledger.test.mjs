import assert from "node:assert/strict";
import { test } from "node:test";
import { fedkd } from "./support.mjs";

const { Ledger, memoryStore, Refusal } = fedkd;
const FREE = { kind: "non_private" };
const BUDGET = { epsilon: 3, delta: 1e-5 };
const plan = (count) => ({ kind: "sampled_gaussian", rate: 0.1, noise: fedkd.calibrated(3, 1e-5, 0.1, 50), count });
const bytes = (...values) => Uint8Array.from(values);
let now = 1000;
const open = (store, more = {}) => Ledger.open(store, { owner: "phone", budget: null, clock: () => now++, ...more });

test("an answer that was given is given again, to the byte, also after a restart", async () => {
  const store = memoryStore();
  const ledger = await open(store);
  await ledger.reserve("7/round/1", FREE, "7", "aa");
  assert.equal(await ledger.replay("7/round/1", "aa"), null);
  await ledger.commit("7/round/1", bytes(1, 2, 3));
  const later = await open(store);
  assert.deepEqual(await later.replay("7/round/1", "aa"), bytes(1, 2, 3));
  assert.deepEqual(later.head, ledger.head);
  await assert.rejects(later.replay("7/round/1", "bb"), /answered another query/);
  await assert.rejects(later.reserve("7/round/1", FREE, "7", "aa"), /was made already/);
  await assert.rejects(later.commit("7/round/1", bytes(9)), /is not under way/);
});

test("an event is on the disk before it may be used, and a crash leaves it spent", async () => {
  const store = memoryStore();
  const ledger = await open(store, { budget: BUDGET });
  await ledger.reserve("7/plan/0", plan(50), "7", "aa");
  const later = await open(store, { budget: BUDGET });
  assert.deepEqual(later.find("7/plan/0").event, plan(50));
  await assert.rejects(later.reserve("8/plan/0", plan(1), "8", "aa"), /privacy budget of this client does not allow/);
  assert.throws(() => later.resume("7/plan/0"), /was lost in a crash, and stays spent/);
});

test("a budget that is reached is not exceeded, one step more is", async () => {
  const ledger = await open(memoryStore(), { budget: BUDGET });
  await ledger.reserve("a", plan(30), "7", "aa");
  await ledger.reserve("b", plan(20), "7", "aa");
  await ledger.reserve("free", { kind: "no_op" }, "7", "aa");
  await assert.rejects(ledger.reserve("c", plan(1), "7", "aa"), Refusal);
  await assert.rejects(ledger.reserve("d", FREE, "7", "aa"), Refusal);
});

test("what promises nothing may be begun again after a crash", async () => {
  const store = memoryStore();
  await (await open(store)).reserve("a", FREE, "7", "aa");
  const ledger = await open(store);
  ledger.resume("a");
  await ledger.commit("a", bytes(5));
  assert.deepEqual(await (await open(store)).replay("a", "aa"), bytes(5));
});

test("records that were altered, cut, reordered or put back are noticed, and nothing is released", async () => {
  const store = memoryStore();
  const ledger = await open(store);
  for (const id of ["a", "b", "c"]) {
    await ledger.reserve(id, FREE, "7", "aa");
    await ledger.commit(id, bytes(1));
  }
  const { head } = await store.read();
  const changed = (change) => {
    const records = [...store.records];
    change(records);
    return { ...store, read: async () => ({ records, head }) };
  };
  const broken = /cannot be trusted, nothing is released/;
  await assert.rejects(open(changed((records) => records.pop())), broken);
  await assert.rejects(open(changed((records) => records.reverse())), broken);
  await assert.rejects(open(changed((records) => records.splice(3, 1))), broken);
  await assert.rejects(open(changed((records) => (records[1] = records[1].replace('"aa"', '"ab"')))), broken);
  await assert.rejects(open(changed((records) => (records[1] = "{}"))), broken);
  await assert.rejects(open(changed((records) => records.splice(0))), broken);
  const fresh = memoryStore();
  await assert.rejects(open(fresh, { seen: ledger.head }), /older than it was, or another one/);
  await open(store, { seen: ledger.head });
});

test("a second page that writes fails, and loses nothing", async () => {
  const store = memoryStore();
  const [one, two] = [await open(store), await open(store)];
  await one.reserve("a", FREE, "7", "aa");
  await assert.rejects(two.reserve("a", FREE, "7", "aa"), /could not be written/);
  await assert.rejects(two.reserve("b", FREE, "7", "aa"), /load the page again/);
  assert.ok((await open(store)).find("a"));
});

test("bytes that were altered are not sent again", async () => {
  const store = memoryStore();
  const ledger = await open(store);
  await ledger.reserve("a", FREE, "7", "aa");
  await ledger.commit("a", bytes(1, 2));
  const other = { ...store, payload: async () => bytes(1, 3) };
  await assert.rejects((await open(other)).replay("a", "aa"), /missing or altered/);
});

test("another owner, another budget and odd names are refused", async () => {
  const store = memoryStore();
  const ledger = await open(store, { budget: BUDGET });
  await assert.rejects(open(store, { owner: "other", budget: BUDGET }), /is of phone, got other/);
  await assert.rejects(open(store), /under epsilon 3, delta 0.00001, got no budget/);
  await assert.rejects(ledger.reserve("../a", { kind: "no_op" }, "7", "aa"), /must be 1 to 200 letters/);
});

test("a clock that was set back does not break the chain", async () => {
  const store = memoryStore();
  const times = [500, 400, 300];
  const ledger = await open(store, { clock: () => times.shift() ?? 200 });
  await ledger.reserve("a", FREE, "7", "aa");
  assert.equal((await open(store)).find("a").time, 500);
});

test("numbers are written as Python writes them", () => {
  const expected = {
    1: "1",
    0.5: "0.5",
    1e-5: "1e-05",
    1.5e-7: "1.5e-07",
    0.0001: "0.0001",
    1e22: "1e+22",
    1763766.25: "1763766.25",
  };
  for (const [value, text] of Object.entries(expected)) assert.equal(fedkd.canonical(Number(value)), text);
  assert.equal(fedkd.canonical({ b: [1, null], a: "x" }), '{"a":"x","b":[1,null]}');
});
