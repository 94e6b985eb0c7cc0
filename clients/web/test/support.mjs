// What all tests share: the library as it was built, and the vectors that Python wrote. Needs nothing but node.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const root = new URL("../../../", import.meta.url);
const folder = process.env.FEDKD_PAGE
  ? pathToFileURL(`${process.env.FEDKD_PAGE}/`)
  : new URL("fedkd/serving/page/", root);

export const fedkd = await import(new URL("science.js", folder).href);
export const page = await import(new URL("protocol.js", folder).href);
export const vectors = JSON.parse(readFileSync(new URL("tests/vectors/phone.json", root), "utf8"));

const KINDS = { "<f4": Float32Array, "|u1": Uint8Array };

/** The numbers of an array of the vectors. */
export function numbers({ data, type }) {
  const bytes = Buffer.from(data, "base64");
  return new KINDS[type](bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
}

export const hex = (bytes) => Buffer.from(bytes).toString("hex");
export const bytes = (text) => new Uint8Array(Buffer.from(text, "hex"));

/** Assert that two arrays differ by at most `relative` of the expected size, or `absolute`. */
export function near(got, expected, { relative = 0, absolute = 0 } = {}) {
  assert.equal(got.length, expected.length);
  for (let i = 0; i < got.length; i++) {
    const gap = Math.abs(got[i] - expected[i]);
    if (!(gap <= absolute + relative * Math.abs(expected[i]))) {
      assert.fail(`value ${i} is ${got[i]}, expected ${expected[i]}`);
    }
  }
}

/** The digits of the vectors as inputs: "rows" of 64 numbers, "small" images, or "large" ones of 28 x 28 pixels. */
export function digits(which, name) {
  const levels = numbers(vectors[which]);
  const rows = levels.length / 64;
  const small = Float32Array.from(levels, (level) => level / 16);
  if (name === "rows") return { x: small, rows, shape: [64] };
  if (name === "small") return { x: small, rows, shape: [1, 8, 8] };
  const x = new Float32Array(rows * 784);
  for (let i = 0; i < rows; i++) {
    for (let y = 0; y < 24; y++) {
      for (let z = 0; z < 24; z++) {
        x[i * 784 + (y + 2) * 28 + z + 2] = small[i * 64 + Math.floor(y / 3) * 8 + Math.floor(z / 3)];
      }
    }
  }
  return { x, rows, shape: [1, 28, 28] };
}

/** The private digits with their labels, or the first `rows` of them. */
export function mine(name, rows = vectors.labels.length) {
  const all = digits("private", name);
  const size = fedkd.sizeOf(all.shape);
  return { x: all.x.slice(0, rows * size), rows, shape: all.shape, y: Int32Array.from(vectors.labels.slice(0, rows)) };
}
