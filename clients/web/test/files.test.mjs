// Files of private data and the transfer set: numpy and safetensors as Python writes them, and files that are none.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { page } from "./support.mjs";

const vectors = JSON.parse(readFileSync(new URL("../../../tests/vectors/phone_files.json", import.meta.url)));
const bytes = (name) => new Uint8Array(Buffer.from(vectors[name].base64, "base64"));
const about = page.readAbout({
  fedkd: "0",
  wire: 2,
  name: "n",
  classes: 3,
  class_names: null,
  shape: [1, 2, 2],
  rows: 2,
  fingerprint: vectors.transfer.fingerprint,
  config: {},
  shards: 0,
  authority: "",
});

test("arrays of every kind are read as Python wrote them", async () => {
  for (const name of ["stored.npz", "deflated.npz", "kinds.npz", "plain.safetensors"]) {
    const found = name.endsWith("npz") ? await page.npz(bytes(name)) : page.safetensors(bytes(name));
    assert.deepEqual([...found.keys()].sort(), Object.keys(vectors[name].arrays).sort());
    for (const [key, { shape, values }] of Object.entries(vectors[name].arrays)) {
      assert.deepEqual([...found.get(key).shape], shape, `${name} ${key}`);
      assert.deepEqual([...found.get(key).data], values, `${name} ${key}`);
    }
  }
});

test("the fingerprint of a transfer set is Python's", async () => {
  const { data, shape } = page.safetensors(bytes("transfer")).get("x");
  assert.equal(await page.fingerprint(shape, data), vectors.transfer.fingerprint);
});

test("bytes of pixels become shares of one, and labels class numbers", async () => {
  const mine = page.examples(await page.npz(bytes("stored.npz")), about, "file", "mine");
  assert.deepEqual([...mine.y], [0, 2]);
  assert.deepEqual(
    [...mine.x],
    [0, 51, 102, 153, 204, 255, 0, 255].map((value) => Math.fround(value / 255)),
  );
});

test("what does not fit the run is refused in one line", async () => {
  const tensor = (data, ...shape) => ({ data, shape });
  const x = tensor(new Float32Array(8), 2, 1, 2, 2),
    y = tensor(Int32Array.of(0, 2), 2);
  const wrong = [
    [{ x }, /needs two arrays/],
    [{ x: tensor(new Float32Array(4), 2, 2), y }, /rows of x must be 1 x 2 x 2, got 2/],
    [{ x, y: tensor(Int32Array.of(0, 3), 2) }, /from 0 to 2, got 3/],
    [{ x, y: tensor(Int32Array.of(0), 1) }, /2 rows, y has 1/],
    [{ x, y: tensor(Float32Array.of(0, 0.5), 2) }, /whole numbers/],
    [{ x: tensor(Float32Array.of(NaN, 0, 0, 0, 0, 0, 0, 0), 2, 1, 2, 2), y }, /finite/],
  ];
  for (const [file, line] of wrong)
    assert.throws(() => page.examples(new Map(Object.entries(file)), about, "file", ""), line);
  assert.equal(
    page.examples(
      new Map([
        ["x", tensor(new Float32Array(8), 2, 2, 2)],
        ["y", y],
      ]),
      about,
      "file",
      "",
    ).x.length,
    8,
  ); // (N, H, W)
});

test("a file cut anywhere is refused, never read past its end", async () => {
  for (const name of ["deflated.npz", "plain.safetensors"]) {
    const whole = bytes(name);
    for (let end = 0; end < whole.length; end += 7) {
      const cut = whole.slice(0, end);
      await assert.rejects(
        async () => (name.endsWith("npz") ? page.npz(cut) : page.safetensors(cut)),
        page.FileError,
        `${name} ${end}`,
      );
    }
  }
});

test("a picture is cut in its middle, and gray is how bright it looks", () => {
  assert.deepEqual(page.middle(400, 300, 8, 8), { x: 50, y: 0, w: 300, h: 300 });
  assert.deepEqual(page.middle(300, 400, 16, 8), { x: 0, y: 125, w: 300, h: 150 });
  const red = Uint8ClampedArray.of(255, 0, 0, 255, 0, 255, 0, 255);
  assert.deepEqual([...page.pixels(red, 3)], [1, 0, 0, 1, 0, 0]);
  assert.deepEqual([...page.pixels(red, 1)], [0.299, 0.587].map(Math.fround));
  assert.equal(page.wantsNegative(Float32Array.of(0.9, 0.8), Float32Array.of(0.1, 0.3)), true);
  assert.equal(page.wantsNegative(Float32Array.of(0.2, 0.1), Float32Array.of(0.1, 0.3)), false);
  assert.deepEqual([...page.inverted(Float32Array.of(0, 0.25))], [1, 0.75]);
  assert.deepEqual([...page.rgba(Float32Array.of(0, 1), [1, 1, 2])], [0, 0, 0, 255, 255, 255, 255, 255]);
  assert.equal(page.rgba(new Float32Array(4), [4]), null);
});

test("a picture is made small by the means of what each pixel covers", () => {
  const line = Float32Array.of(0, 0, 0, 6, 6, 6, 0, 0, 0);
  assert.deepEqual([...page.shrink(line, 1, [1, 9], [1, 3])], [0, 6, 0]);
  assert.deepEqual([...page.shrink(line, 1, [1, 9], [1, 2])], [2, 2]);
  assert.deepEqual([...page.shrink(Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8), 2, [2, 2], [1, 1])], [2.5, 6.5]);
  assert.deepEqual([...page.shrink(Float32Array.of(1, 2), 1, [1, 2], [1, 4])], [1, 1, 2, 2]);
});

test("photos become examples in their order", () => {
  const data = page.asData(
    [
      { id: "a", label: 2, pixels: Float32Array.of(1, 2) },
      { id: "b", label: 0, pixels: Float32Array.of(3, 4) },
    ],
    [1, 1, 2],
    "",
  );
  assert.deepEqual(
    [[...data.x], [...data.y]],
    [
      [1, 2, 3, 4],
      [2, 0],
    ],
  );
});
