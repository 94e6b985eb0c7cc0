import assert from "node:assert/strict";
import { test } from "node:test";
import { bytes, fedkd, hex, near, numbers, vectors } from "./support.mjs";

const { Refusal, Stream } = fedkd;
const sha = vectors.fingerprint;
const EVENTS = {
  NonPrivate: { kind: "non_private" },
  NoOp: { kind: "no_op" },
  SampledGaussian: { kind: "sampled_gaussian", rate: 0.1, noise: 1.25, count: 50 },
};

for (const one of vectors.queries.filter((query) => !query.refused)) {
  test(`a query is read as Python wrote it: ${one.name}`, () => {
    const query = fedkd.decodeQuery(bytes(one.frame), sha, 40, 3);
    assert.equal(query.round, one.round);
    assert.deepEqual([...query.rows], one.rows);
    assert.equal(query.feedback === null, one.feedback === null);
    if (!one.feedback) return;
    assert.deepEqual([...query.feedback.rows], one.feedback.rows);
    assert.deepEqual(query.feedback.p, numbers(one.feedback.p));
  });
}

for (const one of vectors.queries.filter((query) => query.refused)) {
  test(`what a phone cannot read is ${one.name}, with the key to change`, () => {
    const refused = (error) => error instanceof Refusal && error.message.includes(one.refused);
    assert.throws(() => fedkd.decodeQuery(bytes(one.frame), sha, 40, 3), refused);
  });
}

for (const one of vectors.releases) {
  test(`a release is written as Python writes it: ${one.name ?? one.chain}`, () => {
    const raw = { p: numbers(one.p), w: numbers(one.w), classes: 7, encoding: "float32", weightBits: 0 };
    const made = fedkd.prepare(fedkd.chain(one.chain, "release"), raw, new Stream("any"));
    assert.deepEqual(made.p, numbers(one.released));
    assert.deepEqual(made.w, numbers(one.weights));
    const rows = Int32Array.from({ length: 9 }, (_, i) => i);
    const query = { round: one.round, rows, classes: 7, fingerprint: sha, feedback: null };
    assert.equal(hex(fedkd.encodeRelease(made, EVENTS[one.event], query, BigInt(vectors.client))), one.frame);
  });
}

test("no byte of a query may change, and none may lack or be too many", () => {
  const frame = bytes(vectors.queries.find((one) => one.name === "float16 on all rows").frame);
  for (let i = 0; i < frame.length; i++) {
    const other = frame.slice();
    other[i] ^= 1;
    assert.throws(() => fedkd.decodeQuery(other, sha, 40, 3), Refusal, `byte ${i}`);
    assert.throws(() => fedkd.decodeQuery(frame.slice(0, i), sha, 40, 3), Refusal, `cut at ${i}`);
  }
  assert.throws(() => fedkd.decodeQuery(Uint8Array.of(...frame, 0), sha, 40, 3), Refusal);
});

test("bits flipped behind a right checksum never break out of a refusal", () => {
  const stream = new Stream("flips");
  for (const one of vectors.queries) {
    for (let trial = 0; trial < 200; trial++) {
      const frame = bytes(one.frame);
      for (let flips = 0; flips <= trial % 3; flips++) frame[stream.below(frame.length)] = stream.below(256);
      const sum = fedkd.crc32(frame.subarray(18), fedkd.crc32(frame.subarray(0, 14)));
      new DataView(frame.buffer).setUint32(14, sum, true);
      try {
        const { rows, feedback } = fedkd.decodeQuery(frame, sha, 40, 3);
        assert.ok(rows.every((row, i) => row < 40 && (i === 0 || row > rows[i - 1])));
        assert.ok(feedback === null || feedback.p.length === 3 * feedback.rows.length);
      } catch (error) {
        assert.ok(error instanceof Refusal, `${error}`);
      }
    }
  }
});

test("a query about another transfer set, size or number of classes is refused", () => {
  const frame = bytes(vectors.queries[0].frame);
  assert.throws(() => fedkd.decodeQuery(frame, "00".repeat(32), 40, 3), /transfer set is/);
  assert.throws(() => fedkd.decodeQuery(frame, sha, 41, 3), /query is about 40 rows/);
  assert.throws(() => fedkd.decodeQuery(frame, sha, 40, 4), /asks about 3 classes, this phone knows 4/);
  const newer = frame.slice();
  newer[3] = 3;
  assert.throws(() => fedkd.decodeQuery(newer, sha, 40, 3), /version 3, this page reads 2/);
});

test("half precision is that of IEEE 754, for every value and between two", () => {
  for (let bits = 0; bits < 0x7c00; bits++) {
    const value = fedkd.fromHalf(bits);
    assert.equal(fedkd.toHalf(value), bits);
    assert.equal(fedkd.toHalf(-value), bits | 0x8000);
    const [middle, next] = [(value + fedkd.fromHalf(bits + 1)) / 2, bits + 1];
    if (bits < 0x7bff) assert.equal(fedkd.toHalf(middle), bits % 2 ? next : bits); // ties to even
  }
  assert.equal(fedkd.toHalf(65519), 0x7bff);
  assert.equal(fedkd.toHalf(65520), 0x7c00);
  assert.ok(Number.isNaN(fedkd.fromHalf(fedkd.toHalf(NaN))));
});

test("on the grid no unit is lost, and missing ones go to the largest remainders", () => {
  const p = Float32Array.of(0.5, 0.3, 0.2, 0.34, 0.33, 0.33);
  const levels = fedkd.simplexGrid(p, 3, 7, new Stream("grid"));
  near(
    levels,
    [4, 2, 1, 3, 2, 2].map((level, i) => (i < 3 ? level : levels[i])),
    {},
  );
  assert.equal(levels[3] + levels[4] + levels[5], 7);
  const flat = new Float32Array(3000).fill(0.25);
  const one = fedkd.simplexGrid(flat, 4, 1, new Stream("ties"));
  const firsts = one.filter((_, i) => i % 4 === 0).reduce((sum, level) => sum + level, 0);
  assert.ok(firsts > 130 && firsts < 250, `ties went ${firsts} times of 750 to the first class`);
});

test("a chain that a phone cannot do names the key and what to set instead", () => {
  for (const text of ["top_k(k=3)", "float16 | delta", "argmax | range_code", "zstd"]) {
    assert.throws(
      () => fedkd.chain(text, "broadcast"),
      /broadcast: a phone cannot do '\w+'.*set broadcast = 'float16'/,
    );
  }
  assert.throws(() => fedkd.chain("quantize(bits=9)", "release"), /'bits' must be in 1..8, got 9/);
  assert.throws(() => fedkd.chain("quantize(bit=4)", "release"), /no option 'bit' here; it takes bits/);
  assert.throws(() => fedkd.chain("quantize('x')", "release"), /cannot read/);
});
