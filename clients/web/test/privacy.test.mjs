import assert from "node:assert/strict";
import { test } from "node:test";
import { digits, fedkd, mine, near, vectors } from "./support.mjs";

const { Stream, system } = fedkd;
const step = (rate, noise, count) => ({ kind: "sampled_gaussian", rate, noise, count });

test("what DP-SGD costs is what Python counts, at every order", () => {
  for (const one of vectors.costs) {
    const cost = fedkd.rdp(step(one.rate, 1.5, one.count));
    near(cost, one["rdp at 1.5"], { relative: 1e-6, absolute: 1e-12 });
    near([fedkd.epsilonOf(cost, one.delta)], [one["epsilon at 1.5"]], { relative: 1e-6 });
  }
});

test("known answers: Renyi costs of the sampled Gaussian, and the epsilon of Opacus' own test", () => {
  const cost = fedkd.rdp(step(0.01, 1, 1));
  const at = (alpha) => cost[fedkd.ORDERS.indexOf(alpha)];
  near([at(2), at(8), at(32)], [1.718134e-4, 8.936439e-4, 11.246275937], { relative: 1e-6 });
  near([fedkd.epsilonOf(fedkd.rdp(step(0.04, 1.5, 2250)), 1e-5)], [7.32911], { absolute: 0.01 });
  const moments = fedkd.rdp(step(0.01, 4, 10000)); // Abadi et al., by their own conversion
  const classic = fedkd.ORDERS.map((a, i) => (Number.isInteger(a) ? moments[i] + Math.log(1e5) / (a - 1) : Infinity));
  near([Math.min(...classic)], [1.2586], { absolute: 1e-3 });
  assert.ok(fedkd.rdp(step(1, 2, 3)).every((value, i) => Math.abs(value - (3 * fedkd.ORDERS[i]) / 8) < 1e-12));
});

test("what is not private costs infinity, and nothing costs nothing", () => {
  for (const event of [{ kind: "non_private" }, step(2, 1, 1), step(0.1, NaN, 1), step(0.1, 1, 0.5), step(0.1, 0, 1)]) {
    assert.equal(fedkd.epsilonOf(fedkd.rdp(event), 1e-5), Infinity);
  }
  assert.equal(fedkd.epsilonOf(fedkd.total([{ kind: "no_op" }]), 1e-5), 0);
});

test("a phone finds its own noise: enough by Renyi accounting, and never less than the server demands", () => {
  for (const { epsilon, delta, rate, count, noise, tight } of vectors.costs) {
    const found = fedkd.calibrated(epsilon, delta, rate, count);
    assert.ok(fedkd.epsilonOf(fedkd.rdp(step(rate, found, count)), delta) <= epsilon);
    assert.ok(
      fedkd.epsilonOf(fedkd.rdp(step(rate, found / 1.001, count)), delta) > epsilon,
      "and not more than needed",
    );
    near([found], [noise], { relative: 1e-3 });
    assert.ok(found >= tight, `${found} below the ${tight} of a tight accountant`);
  }
});

test("noise that the server names may add to a phone's own and never take away", () => {
  const protection = fedkd.protectionOf("dp_sgd(rate=0.1, clip=1.0)");
  const run = { epsilon: 3, delta: 1e-5, rounds: 2, epochs: 5 };
  const own = fedkd.spending(protection, run);
  assert.equal(own.steps, 50);
  assert.deepEqual(fedkd.eventOf(own, own.steps * own.rounds), step(0.1, own.noise, 100));
  assert.equal(fedkd.spending(protection, run, 0.1).noise, own.noise);
  assert.equal(fedkd.spending(protection, run, 9).noise, 9);
  assert.throws(() => fedkd.spending(protection, { ...run, epsilon: 0 }), /needs a budget above 0/);
});

test("protections that need another device are refused by name", () => {
  for (const spec of ["local", "central", "gnmax(threshold=0.5)", "distributed", "local_gaussian"]) {
    assert.throws(() => fedkd.protectionOf(spec), /protect: a phone cannot do '\w+', only none and dp_sgd/);
  }
  assert.throws(() => fedkd.protectionOf("dp_sgd(rate=1.5)"), /'rate' must be at most 1/);
  assert.throws(() => fedkd.protectionOf("dp_sgd(clip=-1)"), /'clip' must be above 0/);
});

test("noise is normal, from the system, and its scale is neither smaller nor larger", () => {
  const n = 200_000;
  const x = fedkd.normals(system, n);
  const moment = (k) => x.reduce((sum, value) => sum + value ** k, 0) / n;
  assert.ok(system.private);
  near([moment(1), moment(2), moment(3), moment(4)], [0, 1, 0, 3], { absolute: 0.06 });
  assert.ok(Math.abs(moment(2) - 1) < 0.02);
  const beyond = x.filter((value) => Math.abs(value) > 1.959964).length / n;
  assert.ok(Math.abs(beyond - 0.05) < 0.003, `${beyond} of the values in the tails`);
  const other = fedkd.normals(system, n);
  const together = x.reduce((sum, value, i) => sum + value * other[i], 0) / n;
  assert.ok(Math.abs(together) < 0.02);
  const halves = x.reduce((sum, value, i) => sum + value * x[(i + n / 2) % n], 0) / n; // of one pair of uniforms
  assert.ok(Math.abs(halves) < 0.02);
});

test("coins choose each example by itself, at the rate and not at a fixed number", () => {
  const counts = Array.from({ length: 400 }, () => fedkd.coins(system, 500, 0.1).length);
  const mean = counts.reduce((a, b) => a + b) / 400;
  const variance = counts.reduce((sum, count) => sum + (count - mean) ** 2, 0) / 400;
  assert.ok(Math.abs(mean - 50) < 1.5, `${mean} a batch`);
  assert.ok(variance > 32 && variance < 62, `variance ${variance} of 45`);
  assert.equal(fedkd.coins(system, 100, 1).length, 100);
});

test("no example moves a sum by more than the clip, also not one of absurd inputs", async () => {
  const own = mine("small", 20);
  const network = fedkd.cnn(own.shape, 10, 4, 8).initialize(new Stream("clip"));
  const all = Int32Array.from(own.y.keys());
  const clip = 0.05;
  const whole = await fedkd.clippedSum(network, own, all, clip);
  for (const left of [0, 7, 19]) {
    const without = await fedkd.clippedSum(
      network,
      own,
      all.filter((i) => i !== left),
      clip,
    );
    const moved = Math.hypot(...whole.map((value, i) => value - without[i]));
    assert.ok(moved <= clip && moved > 0.99 * clip, `moved by ${moved}`);
  }
  const loose = await fedkd.clippedSum(network, own, all, 1e9);
  const gradient = network.zeros();
  const dz = new Float64Array(10);
  for (const i of all) {
    fedkd.crossEntropy(network.forward(own.x.subarray(64 * i, 64 * i + 64)), fedkd.oneHot(own.y, 10), 10 * i, dz);
    network.backward(dz, gradient);
  }
  near(loose, gradient, { absolute: 1e-4 });
  const without = await fedkd.clippedSum(
    network,
    own,
    all.filter((i) => i !== 7),
    clip,
  );
  for (const absurd of [NaN, Infinity, -Infinity, 3e38]) {
    const x = own.x.slice();
    x.fill(absurd, 64 * 7 + 20, 64 * 7 + 30);
    const sum = await fedkd.clippedSum(network, { ...own, x }, all, clip);
    const moved = Math.hypot(...sum.map((value, i) => value - without[i]));
    assert.ok(moved <= clip, `${absurd} moved the sum by ${moved}`);
  }
});

test("the linear model's gradients are cut in the same way", async () => {
  const own = mine("small");
  const space = await fedkd.whitened(digits("public", "small"), 20);
  const v = await fedkd.unitRows(space.components, own);
  const weights = new Float64Array(21 * 10).map((_, i) => Math.sin(i));
  const all = Int32Array.from(own.y.keys());
  const whole = fedkd.linearSum(weights, v, own.y, all, 0.1, 10);
  const without = fedkd.linearSum(
    weights,
    v,
    own.y,
    all.filter((i) => i !== 3),
    0.1,
    10,
  );
  const moved = Math.hypot(...whole.map((value, i) => value - without[i]));
  assert.ok(moved <= 0.1 && moved > 0.0999, `moved by ${moved}`);
});

test("a step of DP-SGD has noise of the size that was promised on every weight", async () => {
  const own = mine("small", 30);
  const network = fedkd.mlp(own.shape, 10, 32).initialize(new Stream("noise"));
  const before = Float64Array.from(network.theta);
  const budget = { rate: 0.5, clip: 0.1, examples: 30, step: 1, steps: 1, rounds: 1, noise: 40 };
  const event = await fedkd.descend(network, own, budget, system);
  assert.deepEqual(event, step(0.5, 40, 1));
  const moves = before.map((value, i) => (network.theta[i] - value) / ((2 / 15) * (40 / 15)));
  const deviation = Math.sqrt(moves.reduce((sum, value) => sum + value * value, 0) / moves.length);
  assert.ok(Math.abs(deviation - 1) < 0.05, `deviation ${deviation}`);
  const again = Float64Array.from(network.theta);
  await fedkd.descend(network, own, budget, system);
  assert.notDeepEqual(
    network.theta.map((value, i) => value - again[i]),
    again.map((value, i) => value - before[i]),
  );
});

test("with much budget a private model learns digits, by network and by linear model", async () => {
  const own = mine("small");
  const right = (p) => own.y.filter((label, i) => fedkd.argmax(p, 10 * i, 10) === label).length;
  const budget = { rate: 0.5, clip: 0.1, examples: 100, step: 1.5, steps: 40, rounds: 1, noise: 0.5 };
  const network = fedkd.cnn(own.shape, 10, 8, 32).initialize(new Stream("private"));
  await fedkd.descend(network, own, { ...budget, steps: 100 }, system);
  const byNetwork = right(await fedkd.predict(network, own));
  assert.ok(byNetwork > 65, `${byNetwork} of 100`);
  const space = await fedkd.whitened(digits("public", "small"), 20);
  const v = await fedkd.unitRows(space.components, own);
  const weights = new Float64Array(21 * 10);
  await fedkd.descendPrivately(weights, v, own, space, { ...budget, step: 0.3, steps: 20 }, 10, system);
  const byLinear = right(fedkd.predictLinearly(weights, v, 10, 1));
  assert.ok(byLinear > 75, `${byLinear} of 100`);
});
