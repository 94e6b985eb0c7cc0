import assert from "node:assert/strict";
import { test } from "node:test";
import { digits, fedkd, mine, near, numbers, vectors } from "./support.mjs";

const { Stream } = fedkd;
const PLAIN = { epochs: 30, batchSize: 16, learningRate: 0.003, schedule: () => 1, views: [] };

/** The gradient of `loss` at `theta` by central differences, in double precision. */
function differences(theta, loss, h = 1e-6) {
  return Float64Array.from(theta, (value, i) => {
    theta[i] = value + h;
    const above = loss();
    theta[i] = value - h;
    const below = loss();
    theta[i] = value;
    return (above - below) / (2 * h);
  });
}

for (const one of vectors.networks) {
  test(`a ${one.kind} on (${one.shape}) says what torch says`, () => {
    const make = {
      cnn: () => fedkd.cnn(one.shape, 4, one.width, one.hidden),
      mlp: () => fedkd.mlp(one.shape, 4, one.hidden),
    };
    const network = make[one.kind]();
    network.theta.set(numbers(one.theta));
    const [x, size] = [numbers(one.x), fedkd.sizeOf(one.shape)];
    const z = [0, 1, 2].flatMap((i) => [...network.forward(x.subarray(i * size, (i + 1) * size))]);
    near(z, numbers(one.z), { relative: 1e-5, absolute: 1e-6 });
  });
}

const NETWORKS = {
  "a cnn on gray 9 x 11": () => [fedkd.cnn([1, 9, 11], 4, 3, 5, Float64Array), 99],
  "a cnn on colored 4 x 4": () => [fedkd.cnn([3, 4, 4], 3, 4, 8, Float64Array), 48],
  "an mlp": () => [fedkd.mlp([7], 5, 6, Float64Array), 7],
};
for (const [name, make] of Object.entries(NETWORKS)) {
  test(`every gradient of ${name} is that of finite differences`, () => {
    const [network, size] = make();
    const stream = new Stream("gradients");
    network.initialize(stream);
    const inputs = Array.from({ length: 12 }, () =>
      Float64Array.from({ length: size }, () => 2 * stream.uniform() - 1),
    );
    const p = Float64Array.from(
      { length: network.classes },
      (_, c) => (c + 1) / ((network.classes * (network.classes + 1)) / 2),
    );
    const dz = new Float64Array(network.classes);
    const loss = () => inputs.reduce((sum, x) => sum + fedkd.crossEntropy(network.forward(x), p, 0, dz), 0);
    const gradient = network.zeros();
    for (const x of inputs) {
      fedkd.crossEntropy(network.forward(x), p, 0, dz);
      network.backward(dz, gradient);
    }
    const expected = differences(network.theta, loss);
    assert.ok(expected.filter((value) => value !== 0).length > 0.3 * expected.length, "many weights matter");
    near(gradient, expected, { absolute: 2e-8 });
  });
}

for (const { spec, z, p, loss, slope } of vectors.losses) {
  test(`the loss ${spec} and its slope are torch's`, () => {
    const each = fedkd.distillLoss(spec);
    const [logits, targets, dz] = [numbers(z), numbers(p), new Float64Array(4)];
    for (let i = 0; i < 5; i++) {
      const value = each(logits.subarray(4 * i, 4 * i + 4), targets, 4 * i, dz);
      near([value], [numbers(loss)[i]], { relative: 1e-4, absolute: 1e-5 });
      near(dz, numbers(slope).subarray(4 * i, 4 * i + 4), { absolute: 1e-5 });
    }
  });
}

test("ten steps of Adam lead where torch's ten steps lead", async () => {
  const { x, labels, before, after } = vectors.training;
  const network = fedkd.cnn([1, 9, 8], 4, 2, 5);
  network.theta.set(numbers(before));
  const inputs = { x: numbers(x), rows: 12, shape: [1, 9, 8] };
  const settings = { epochs: 10, batchSize: 12, learningRate: 0.01, schedule: fedkd.scheduleOf("linear"), views: [] };
  const targets = fedkd.oneHot(Int32Array.from(labels), 4);
  await fedkd.learn(network, inputs, targets, fedkd.crossEntropy, settings, new Stream("any"));
  near(network.theta, numbers(after), { absolute: 1e-4 });
  assert.ok(network.theta.some((value, i) => Math.abs(value - numbers(before)[i]) > 0.03));
});

test("a network learns digits it has seen, and others like them", async () => {
  const own = mine("small");
  const seen = { x: own.x.slice(0, 70 * 64), rows: 70, shape: own.shape };
  const network = fedkd.cnn(own.shape, 10).initialize(new Stream("learn"));
  const targets = fedkd.oneHot(own.y.subarray(0, 70), 10);
  const first = await fedkd.learn(network, seen, targets, fedkd.crossEntropy, { ...PLAIN, epochs: 1 }, new Stream(1));
  const last = await fedkd.learn(network, seen, targets, fedkd.crossEntropy, PLAIN, new Stream(2));
  assert.ok(first > 2 && last < 0.2, `loss from ${first} to ${last}`);
  const p = await fedkd.predict(network, own);
  const right = (from, to) => {
    let sum = 0;
    for (let i = from; i < to; i++) sum += fedkd.argmax(p, 10 * i, 10) === own.y[i];
    return sum / (to - from);
  };
  assert.ok(right(0, 70) > 0.97, `${right(0, 70)} of those seen`);
  assert.ok(right(70, 100) > 0.6, `${right(70, 100)} of the others`);
});

test("the same seed gives the same weights to the bit, another seed others", async () => {
  const own = mine("small", 40);
  const trained = async (seed) => {
    const network = fedkd.cnn(own.shape, 10, 4, 8).initialize(new Stream(seed, "init"));
    const settings = { ...PLAIN, epochs: 2, views: fedkd.viewsOf("shift(pixels=1)") };
    await fedkd.learn(network, own, fedkd.oneHot(own.y, 10), fedkd.crossEntropy, settings, new Stream(seed, "fit"));
    return network.theta;
  };
  assert.deepEqual(await trained(1), await trained(1));
  assert.notDeepEqual(await trained(1), await trained(2));
});

test("training that runs away is refused and names the setting", async () => {
  const own = mine("small", 20);
  const network = fedkd.mlp(own.shape, 10).initialize(new Stream(0));
  const wild = { ...PLAIN, learningRate: 1e30 };
  const work = fedkd.learn(network, own, fedkd.oneHot(own.y, 10), fedkd.crossEntropy, wild, new Stream(0));
  await assert.rejects(work, /diverged: lower learning_rate/);
});

test("views move an image and mirror it, and leave its labels and its pixels alone", () => {
  const [shift] = fedkd.viewsOf("shift(pixels=1)");
  const seen = new Set();
  for (let trial = 0; trial < 200; trial++) {
    const x = new Float32Array(25);
    x[12] = 1; // the middle of 5 x 5
    shift(x, [1, 5, 5], new Stream("shift", trial));
    assert.equal(
      x.reduce((sum, value) => sum + value, 0),
      1,
    );
    seen.add(x.indexOf(1));
  }
  assert.deepEqual(
    [...seen].sort((a, b) => a - b),
    [6, 7, 8, 11, 12, 13, 16, 17, 18],
  );
  const [flip] = fedkd.viewsOf("flip");
  const flips = Array.from({ length: 100 }, (_, trial) => {
    const x = Float32Array.of(1, 2, 3, 4, 5, 6);
    flip(x, [1, 2, 3], new Stream("flip", trial));
    assert.ok(["1,2,3,4,5,6", "3,2,1,6,5,4"].includes(x.join()));
    return x[0] === 3;
  });
  assert.ok(flips.filter(Boolean).length > 30 && flips.filter(Boolean).length < 70);
});

test("schedules are those of fedkd", () => {
  near([0, 0.5].map(fedkd.scheduleOf("linear")), [1, 0.5], {});
  near([0, 0.5, 1].map(fedkd.scheduleOf("cosine")), [1, 0.5, 0], { absolute: 1e-12 });
  near([0.1, 0.2, 0.6].map(fedkd.scheduleOf("cosine(warmup=0.2)")), [0.5, 1, 0.5], { absolute: 1e-12 });
  assert.throws(() => fedkd.scheduleOf("step"), /schedule: a phone cannot do 'step'/);
});

test("softmax regression on public components learns digits in a few steps", async () => {
  const own = mine("small");
  const space = await fedkd.whitened(digits("public", "small"), 50);
  const v = await fedkd.unitRows(space.components, own);
  for (let i = 0; i < 100; i++) near([Math.hypot(...v.data.subarray(i * 51, i * 51 + 51))], [1], { absolute: 1e-6 });
  const start = new Float64Array(51 * 10);
  const weights = fedkd.descendPlainly(start, v, fedkd.oneHot(own.y, 10), 10, 20);
  const p = fedkd.predictLinearly(weights, v, 10, 1);
  const right = own.y.filter((label, i) => fedkd.argmax(p, 10 * i, 10) === label).length;
  assert.ok(right > 90, `${right} of 100`);
  const warm = fedkd.predictLinearly(weights, v, 10, 4);
  assert.ok(Math.max(...warm) < Math.max(...p), "temperature makes it less certain");
});
