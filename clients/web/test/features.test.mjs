import assert from "node:assert/strict";
import { test } from "node:test";
import { digits, fedkd, mine, near, numbers, vectors } from "./support.mjs";

test("rows that stand for many are those that Python takes", async () => {
  const { rows, most, first } = vectors.sample;
  const found = await fedkd.sample(rows, most);
  assert.deepEqual([...found.slice(0, first.length)], first);
  assert.equal(found.length, most);
  const draw = fedkd.pcg64(BigInt(vectors.uniforms.seed));
  assert.deepEqual(vectors.uniforms.drawn.map(draw), vectors.uniforms.drawn);
});

test("shapes are Python's, on small, large and colored images", () => {
  for (const name of ["small", "large"]) {
    const images = digits("public", name);
    const expected = numbers(vectors.shapes[name]);
    const out = new Float32Array(expected.length);
    fedkd.shapes(images.shape).write(images, 0, 6, out);
    near(out, expected, { absolute: 2e-6 });
  }
  const gray = digits("public", "large").x;
  const x = new Float32Array(4 * 3 * 784); // channel k of image i is gray image k + i
  for (let i = 0; i < 4; i++)
    for (let k = 0; k < 3; k++) x.set(gray.subarray((k + i) * 784, (k + i + 1) * 784), (3 * i + k) * 784);
  const expected = numbers(vectors.shapes.color);
  const out = new Float32Array(expected.length);
  fedkd.shapes([3, 28, 28]).write({ x, rows: 4, shape: [3, 28, 28] }, 0, 4, out);
  near(out, expected, { absolute: 2e-6 });
});

for (const [name, expected] of Object.entries(vectors.neighborhoods)) {
  test(`distances, weights and evidence are Python's on ${name} inputs`, async () => {
    const where = new fedkd.Surroundings(digits("public", name));
    const space = await where.space(80, {});
    const theirs = await where.around(80, 5, {});
    const own = await space.project(mine(name));
    near(await fedkd.nearest(space.public, own, 5), numbers(expected.distances), { relative: 1e-3, absolute: 1e-4 });
    near(theirs.logR, numbers(expected.log_r), { absolute: 1e-3 });
    near([theirs.dimension], [expected.dimension], { relative: 1e-3 });
    const w = await fedkd.density(fedkd.expertiseOf("density"), where, mine(name), 200);
    near(w.map(Math.log), numbers(expected.density).map(Math.log), { absolute: 0.02 });
    const two = fedkd.expertiseOf("density(neighbors=3, dimensions=20)");
    const few = await fedkd.density(two, where, mine(name, 2), 200);
    near(few.map(Math.log), numbers(expected["density of two"]).map(Math.log), { absolute: 0.02 });
    const e = await fedkd.neighbors(fedkd.evidenceOf("neighbors"), where, mine(name, 60), 10);
    near(e, numbers(expected.evidence), { absolute: 0.02 });
  });
}

test("members that look at soft labels only are Python's", () => {
  const p = numbers(vectors.plain.p);
  for (const [spec, expected] of Object.entries(vectors.plain.members)) {
    near(fedkd.weigh(fedkd.expertiseOf(spec), p, 5), numbers(expected), { relative: 1e-6 });
  }
});

test("evidence beside a ballot is Python's, and what a model rules out stays ruled out", () => {
  const { p, e, ballots } = vectors.beside;
  const found = fedkd.beside(numbers(p), numbers(e), 4);
  near(found, numbers(ballots), { absolute: 1e-6 });
  assert.equal(found[4], 0);
});

test("leading eigenvectors are those of a matrix whose own are known, also of few and of equal values", async () => {
  const n = 60;
  const stream = new fedkd.Stream("matrix");
  const turn = Array.from({ length: n }, () => Float64Array.from({ length: n }, () => stream.uniform() - 0.5));
  turn.forEach((row, i) => {
    for (const other of turn.slice(0, i)) {
      const share = row.reduce((sum, value, k) => sum + value * other[k], 0);
      row.forEach((_, k) => (row[k] -= share * other[k]));
    }
    const length = Math.hypot(...row);
    row.forEach((_, k) => (row[k] /= length));
  });
  const values = Array.from({ length: n }, (_, i) => (i < 20 ? 2 ** -(i >> 1) : 0)); // in pairs, and forty zeros
  const matrix = new Float64Array(n * n);
  for (let k = 0; k < n; k++)
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) matrix[i * n + j] += values[k] * turn[k][i] * turn[k][j];
  const found = await fedkd.leading(matrix, n, 10);
  near(found.values, values.slice(0, 10), { absolute: 1e-9 });
  found.vectors.forEach((vector, k) => {
    const image = Float64Array.from({ length: n }, (_, i) =>
      vector.reduce((sum, value, j) => sum + matrix[i * n + j] * value, 0),
    );
    near(
      image,
      vector.map((value) => value * values[k]),
      { absolute: 1e-6 },
    );
  });
});

test("no data of one's own means no vote, and a class that was never seen is the least likely", async () => {
  const where = new fedkd.Surroundings(digits("public", "small"));
  const nothing = { x: new Float32Array(0), rows: 0, shape: [1, 8, 8], y: new Int32Array(0) };
  assert.ok((await fedkd.density(fedkd.expertiseOf("density"), where, nothing, 200)).every((w) => w === 0));
  const own = mine("small", 5);
  const e = await fedkd.neighbors(fedkd.evidenceOf("neighbors"), where, own, 10);
  const unseen = Array.from({ length: 10 }, (_, c) => c).find((c) => !own.y.includes(c));
  for (let i = 0; i < 200; i++) {
    const row = e.subarray(10 * i, 10 * i + 10);
    assert.equal(row[unseen], Math.min(...row));
    assert.ok(row[unseen] <= -45);
  }
});

test("long work tells how far it is and stops when asked to", async () => {
  const stop = new AbortController();
  const told = [];
  const progress = (doing, share) => {
    told.push([doing, share]);
    stop.abort();
  };
  const transfer = digits("public", "large");
  const work = fedkd.spaceOf({ ...transfer, rows: 200 }, 80, { progress, signal: stop.signal });
  await assert.rejects(work, fedkd.Cancelled);
  assert.ok(told.length >= 1 && told.every(([doing, share]) => doing && share >= 0 && share <= 1));
});
