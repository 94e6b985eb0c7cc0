import assert from "node:assert/strict";
import { test } from "node:test";
import { bytes, digits, fedkd, mine, vectors } from "./support.mjs";

const { Ledger, memoryStore } = fedkd;
const CONFIG = { ...vectors.config, learner: "cnn(width=4, hidden=16)", "local-epochs": 3 };
const PRIVATE = {
  ...CONFIG,
  protect: "dp_sgd(rate=1.0, clip=0.1, examples=100, step=0.3)",
  epsilon: 3,
  rounds: 2,
  expertise: "uniform",
  evidence: "none",
  learner: "linear(dimensions=20, temperature=4.0)",
  "local-epochs": 10,
  release: "argmax",
};
const KEY = 7n;
const transfer = digits("public", "small");
const fingerprint = vectors.fingerprints.small;
const surroundings = new fedkd.Surroundings(transfer);

/** A site; `given` replaces parts of it. */
const site = (given = {}) => ({
  key: KEY,
  mine: mine("small"),
  classes: 10,
  transfer,
  fingerprint,
  run: "12",
  ...given,
});

/** The frame of a query for all rows, with feedback or without, as the server writes it. */
function query(round, rows = 200, feedback = null) {
  const sha = bytes(fingerprint);
  const body = new fedkd.Writer().raw(sha.subarray(8)).varint(200);
  if (rows === 200) body.byte(0);
  else
    body.byte(1).raw(
      fedkd.packBits(
        Array.from({ length: 200 }, (_, i) => (i < rows ? 1 : 0)),
        1,
      ),
    );
  if (feedback) body.byte(0).raw(fedkd.pack(feedback, "float32", 10));
  const header = { kind: 1, encoding: feedback ? 0 : 255, classes: 10, rows: feedback ? 200 : 0, round, client: 0n };
  return fedkd.write({ ...header, fingerprint: sha, flags: 0, base: 0 }, body.done());
}

const ledgerOf = (store = memoryStore(), budget = null) => Ledger.open(store, { owner: "phone", budget });
const ask = (frame, state, ledger, more = {}) =>
  fedkd.answer(frame, more.config ?? CONFIG, more.site ?? site(), state, ledger, { surroundings, ...more });

test("the fingerprint of inputs is Python's", async () => {
  for (const [name, expected] of Object.entries(vectors.fingerprints)) {
    assert.equal(await fedkd.fingerprintOf(digits("public", name)), expected);
  }
});

test("a query is answered with soft labels on the asked rows, weighed by density", async () => {
  const ledger = await ledgerOf();
  const { frame, state } = await ask(query(1, 50), null, ledger);
  const [header] = fedkd.read(frame, 2);
  assert.deepEqual([header.rows, header.classes, header.round, header.client, header.encoding], [50, 10, 1, KEY, 1]);
  assert.equal(state.expertise.length, 200);
  assert.equal(state.evidence.length, 2000);
  assert.equal(new Set(state.expertise.slice(0, 50)).size > 40, true);
});

test("the same query gets the same bytes, also from a phone that has forgotten all but its ledger", async () => {
  const store = memoryStore();
  const first = await ask(query(1), null, await ledgerOf(store));
  const again = await ask(query(1), null, await ledgerOf(store));
  assert.deepEqual(again.frame, first.frame);
  assert.equal(again.state, null);
  const other = await ask(query(1, 100), first.state, await ledgerOf(store));
  assert.notDeepEqual(other.frame, first.frame);
});

test("a round goes on from the model of the last, and learns what comes back", async () => {
  const ledger = await ledgerOf();
  const first = await ask(query(1), null, ledger);
  const told = new Float32Array(2000);
  for (let i = 0; i < 200; i++) told[10 * i + 4] = 1; // the server says that all is a four
  const config = { ...CONFIG, "local-epochs": 0, "feedback-epochs": 20, evidence: "none" };
  const model = (state) => ({ ...state, identity: fedkd.configOf(config).identity });
  const without = await ask(query(2), model(first.state), ledger, { config });
  assert.deepEqual(without.state.model, first.state.model);
  assert.deepEqual(without.state.expertise, first.state.expertise);
  const taught = await ask(query(3, 200, told), model(first.state), ledger, { config });
  const fours = (frame) => {
    const reader = new fedkd.Reader(frame.subarray(frame.length - 200 * 10 * 2));
    const p = fedkd.unpack(reader, 200, "float16", 10);
    return Array.from({ length: 200 }, (_, i) => fedkd.argmax(p, 10 * i, 10)).filter((c) => c === 4).length;
  };
  assert.ok(fours(without.frame) < 60 && fours(taught.frame) > 180, `${fours(without.frame)}, ${fours(taught.frame)}`);
});

test("another configuration is another run, and a query from the past begins anew", async () => {
  const ledger = await ledgerOf();
  const { state } = await ask(query(2), null, ledger);
  const fresh = await ask(query(1), null, await ledgerOf());
  const past = await ask(query(1), state, await ledgerOf());
  assert.deepEqual(past.frame, fresh.frame);
  const config = { ...CONFIG, seed: 5 };
  const other = await ask(query(3), state, await ledgerOf(), { config });
  assert.deepEqual(other.frame, (await ask(query(3), null, await ledgerOf(), { config })).frame);
  assert.notDeepEqual(other.state.model, state.model);
});

test("new images of one's own are looked at anew", async () => {
  const first = await ask(query(1), null, await ledgerOf(), { site: site({ mine: mine("small", 60) }) });
  const later = await ask(query(2), first.state, await ledgerOf());
  assert.notDeepEqual(later.state.expertise, first.state.expertise);
  assert.notEqual(later.state.data, first.state.data);
});

test("a private run is charged whole before it begins, trains each round once, and says what it did", async () => {
  const store = memoryStore();
  const budget = { epsilon: 3, delta: 1e-5 };
  const ledger = await ledgerOf(store, budget);
  const { frame, state } = await ask(query(1), null, ledger, { config: PRIVATE });
  const [, reader] = fedkd.read(frame, 2);
  const { noise } = fedkd.configOf(PRIVATE).protection;
  assert.equal(reader.byte(), 3);
  assert.deepEqual([...new Float64Array(reader.take(32).slice().buffer)], [1, noise, 10, 0]);
  assert.deepEqual(ledger.find("12/plan/0").event, { kind: "sampled_gaussian", rate: 1, noise, count: 20 });
  const lost = await ledgerOf(store, budget);
  await lost.reserve("12/round/2", { kind: "no_op" }, "12", "aa"); // as if the page had died in the second round
  const after = await ask(query(2), state, await ledgerOf(store, budget), { config: PRIVATE });
  assert.equal(fedkd.read(after.frame, 2)[1].byte(), 1, "no_op");
  assert.deepEqual(after.state.model, state.model);
  assert.match((await ask(query(3), state, lost, { config: PRIVATE })).refusal, /round 3 is not one of the 2/);
  const again = await ask(query(1), null, lost, { config: PRIVATE, site: site({ run: "13" }) });
  assert.match(again.refusal, /privacy budget of this client does not allow/);
  const others = await ask(query(2), null, lost, { config: { ...PRIVATE, seed: 3 } });
  assert.match(others.refusal, /run 12 was begun with other settings/);
});

test("without a budget nothing private is promised, and with one nothing is given without", async () => {
  assert.match(
    (await ask(query(1), null, await ledgerOf(), { config: PRIVATE })).refusal,
    /needs a ledger with a budget/,
  );
  const guarded = await ledgerOf(memoryStore(), { epsilon: 3, delta: 1e-5 });
  assert.match((await ask(query(1), null, guarded)).refusal, /privacy budget of this client does not allow/);
});

test("two phones with equal data draw different noise, and so does one phone that is asked by two runs", async () => {
  const budget = { epsilon: 3, delta: 1e-5 };
  const models = [];
  for (const run of ["1", "2"]) {
    const given = { config: { ...PRIVATE, learner: "mlp(hidden=8)" }, site: site({ run }) };
    models.push((await ask(query(1), null, await ledgerOf(memoryStore(), budget), given)).state.model);
  }
  const same = models[0].filter((value, i) => value === models[1][i]).length;
  assert.ok(same < 0.01 * models[0].length);
});

test("state is kept before an answer counts as made", async () => {
  const store = memoryStore();
  const kept = [];
  const save = async (state) => kept.push([state.round, store.records.length]);
  await ask(query(1), null, await ledgerOf(store), { save });
  assert.deepEqual(kept, [[1, 2]]); // opened and reserved, not committed yet
  assert.equal(store.records.length, 3);
});

test("a phone can be stopped between two batches, and goes on later", async () => {
  const store = memoryStore();
  const stop = new AbortController();
  const progress = (doing) => doing.startsWith("training") && stop.abort();
  const config = { ...CONFIG, "local-epochs": 50 };
  const work = ask(query(1), null, await ledgerOf(store), { config, progress, signal: stop.signal });
  await assert.rejects(work, fedkd.Cancelled);
  assert.equal(store.records.length, 2);
  const { frame } = await ask(query(1), null, await ledgerOf(store));
  assert.equal(fedkd.read(frame, 2)[0].rows, 200);
});

test("what a phone cannot do is refused in one line that names the key", async () => {
  const refusals = [
    [{ protect: "local", epsilon: 3 }, /protect: a phone cannot do 'local'/],
    [{ expertise: "kulsif" }, /expertise: a phone cannot do 'kulsif', only uniform, confidence, entropy, density/],
    [{ evidence: "other" }, /evidence: a phone cannot do 'other'/],
    [{ release: "float16 | delta" }, /release: a phone cannot do 'delta'/],
    [{ broadcast: "float16 | zstd" }, /broadcast: a phone cannot do 'zstd'/],
    [{ distill: "huber" }, /distill: a phone cannot do 'huber'/],
    [{ keys: "classes" }, /keys: a phone answers about samples only/],
    [{ attack: "flip" }, /attack: is for simulations/],
    [{ resolved: false }, /not complete/],
    [{ seed: "x" }, /'seed' must be a number, got x/],
    [{ protect: "dp_sgd", epsilon: 3 }, /evidence: 'neighbors' reads private data beside the model/],
    [{ protect: "dp_sgd", epsilon: 3, evidence: "none" }, /expertise: 'density' reads private data/],
    [{ expertise: "density(neighbors=0)" }, /'neighbors' must be above 0/],
  ];
  for (const [change, expected] of refusals) {
    const store = memoryStore();
    const { refusal } = await ask(query(1), null, await ledgerOf(store), { config: { ...CONFIG, ...change } });
    assert.match(refusal, expected);
    assert.ok(!refusal.includes("\n") && refusal.length <= 500);
    assert.equal(store.records.length, 1, "nothing was reserved");
  }
});

test("data that does not fit is refused before anything is reserved, and its content is not told", async () => {
  const own = mine("small");
  const spoiled = own.x.slice();
  spoiled[3] = NaN;
  for (const [change, expected] of [
    [{ ...own, x: spoiled }, /holds NaN or infinity/],
    [{ ...own, y: own.y.map((label) => label + 5) }, /a label is not one of the run's classes/],
    [{ ...own, x: own.x.slice(1) }, /do not fit together/],
    [{ ...own, shape: [1, 4, 16] }, /images are \(1, 4, 16\), the run's \(1, 8, 8\)/],
    [{ ...own, rows: 0, x: new Float32Array(0), y: new Int32Array(0) }, /has no images of its own yet/],
  ]) {
    const { refusal } = await ask(query(1), null, await ledgerOf(), { site: site({ mine: change }) });
    assert.match(refusal, expected);
  }
  const { refusal } = await ask(query(1), null, await ledgerOf(), { site: site({ fingerprint: "00".repeat(32) }) });
  assert.match(refusal, /transfer set is/);
});

test("a phone takes its turn in a mix, or the next that it has", () => {
  const of = (learner, key, shape = [1, 8, 8]) =>
    fedkd.learnerOf(fedkd.configOf({ ...CONFIG, learner }), BigInt(key), shape).name;
  assert.deepEqual(
    [0, 1, 2, 3].map((key) => of("cnn, mlp, forest, logistic", key)),
    ["cnn", "mlp", "cnn", "cnn"],
  );
  assert.equal(of("forest", 0), "cnn");
  assert.equal(of("my_module:make", 0), "cnn");
  assert.equal(of("cnn", 0, [64]), "mlp");
  assert.equal(of("linear(dimensions=20)", 2n ** 64n - 1n), "linear");
  assert.equal(of("cnn, mlp", 2n ** 64n - 1n), "mlp");
});

test("where examples are hidden, an absurd one decides nothing, and none at all is an answer too", async () => {
  const own = mine("small");
  const x = own.x.slice();
  x.fill(NaN, 64, 128);
  const nothing = { x: new Float32Array(0), rows: 0, shape: [1, 8, 8], y: new Int32Array(0) };
  for (const learner of ["linear(dimensions=20)", "mlp(hidden=8)"]) {
    for (const change of [{ ...own, x }, { ...own, y: own.y.map((label, i) => (i ? label : 99)) }, nothing]) {
      const ledger = await ledgerOf(memoryStore(), { epsilon: 3, delta: 1e-5 });
      const given = { config: { ...PRIVATE, learner }, site: site({ mine: change }) };
      const { frame, refusal } = await ask(query(1), null, ledger, given);
      assert.equal(refusal, undefined);
      assert.equal(fedkd.read(frame, 2)[0].rows, 200);
    }
  }
});

test("nothing is charged for what turns out to be impossible", async () => {
  const ledger = await ledgerOf(memoryStore(), { epsilon: 3, delta: 1e-5 });
  for (const learner of ["linear(features='scattering')", "cnn(width=0)", "cnn(depth=3)"]) {
    const { refusal } = await ask(query(1), null, ledger, { config: { ...PRIVATE, learner } });
    assert.match(refusal, /learner/);
  }
  assert.equal(ledger.head.count, 1);
});
