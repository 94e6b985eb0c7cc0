// The Fleet client against bytes that Flower's own classes wrote.
import assert from "node:assert/strict";
import { createVerify } from "node:crypto";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { page } from "./support.mjs";

const vectors = JSON.parse(readFileSync(new URL("../../../tests/vectors/phone_fleet.json", import.meta.url)));
const hex = (bytes) => Buffer.from(bytes).toString("hex");
const bytes = (text) => new Uint8Array(Buffer.from(text, "hex"));
const text = (value) => new TextEncoder().encode(value);
const given = (name) => vectors[name].fields;
const read = (name) => bytes(vectors[name].hex);

function metadata(fields) {
  const id = (value) => (value === null ? null : BigInt(value));
  return {
    ...fields,
    runId: id(fields.runId),
    source: id(fields.source),
    target: id(fields.target),
    sourceTask: id(fields.sourceTask),
    targetTask: id(fields.targetTask),
  };
}

const written = {
  activate_request: (f) => page.activateRequest(text(f.public_key), f.interval),
  heartbeat_request: (f) => page.heartbeatRequest(BigInt(f.node), f.interval),
  pull_request: (f) => page.pullRequest(BigInt(f.node)),
  get_run_request: (f) => page.aboutRequest(BigInt(f.node), BigInt(f.run)),
  pull_object_request: (f) => page.aboutRequest(BigInt(f.node), BigInt(f.run), f.object),
  confirm_request: (f) => page.aboutRequest(BigInt(f.node), BigInt(f.run), f.object),
  push_request: (f) => page.pushRequest(BigInt(f.node), metadata(f.metadata), f.tree),
  push_object_request: (f) =>
    page.pushObjectRequest(BigInt(f.node), BigInt(f.run), f.object, bytes(f.content), f.session),
  zeros: (f) =>
    page.writeRecord({
      zero: BigInt(f.zero),
      no: f.no,
      nothing: f.nothing,
      less: BigInt(f.less),
      empty: f.empty,
      void: bytes(f.void.hex),
    }),
};
for (const [name, write] of Object.entries(written))
  test(`${name} is written to the byte as Flower writes it`, () =>
    assert.equal(hex(write(given(name))), vectors[name].hex));

test("what Flower answers is read as it was meant", () => {
  assert.equal(page.activateResponse(read("activate_response")), BigInt(given("activate_response").node));
  assert.equal(page.heartbeatResponse(read("heartbeat_response")), true);
  assert.equal(page.heartbeatResponse(new Uint8Array()), false);
  const [pulled] = page.pullResponse(read("pull_response"));
  assert.deepEqual(pulled.metadata, metadata(given("pull_response").metadata));
  assert.deepEqual(pulled.tree, given("pull_response").tree);
  assert.deepEqual(page.pullResponse(read("empty_pull_response")), []);
  assert.deepEqual(page.runResponse(read("get_run_response")), given("get_run_response").config);
  assert.equal(hex(page.pullObjectResponse(read("pull_object_response"))), given("pull_object_response").content);
  assert.equal(page.pullObjectResponse(read("late_object_response")), null);
  assert.throws(() => page.pullObjectResponse(new Uint8Array()), /does not know an object/);
  assert.deepEqual(page.pushResponse(read("push_response")), given("push_response"));
  assert.equal(page.pushObjectResponse(read("push_object_response")), true);
  const zeros = page.readRecord(read("zeros"));
  assert.deepEqual(
    { ...zeros, void: hex(zeros.void) },
    { zero: 0n, no: false, nothing: 0, less: -2n, empty: "", void: "" },
  );
});

test("bytes that end early or loop are refused in one line", () => {
  const whole = read("pull_response");
  let refused = 0;
  for (let end = 1; end < whole.length; end++)
    try {
      page.pullResponse(whole.subarray(0, end));
    } catch (error) {
      assert.ok(error instanceof page.ProtoError, error);
      refused++;
    }
  assert.ok(refused > whole.length * 0.9);
  assert.throws(() => page.pullResponse(bytes("0bff")), page.ProtoError);
  assert.throws(() => page.readTree(bytes("ff".repeat(11))), page.ProtoError);
  let nested = bytes("0a0161");
  for (let k = 0; k < 40; k++)
    nested = new Uint8Array([
      0x12,
      ...(nested.length < 128 ? [nested.length] : [(nested.length & 127) | 128, nested.length >> 7]),
      ...nested,
    ]);
  assert.throws(() => page.readTree(nested), /nested/);
});

test("a message of Flower's is opened, and ours has the very objects that Flower would make", async () => {
  const query = vectors.query;
  for (const [id, part] of Object.entries(query.parts)) assert.equal(await page.sha256(bytes(part)), id);
  assert.deepEqual(page.names(query.tree), Object.keys(query.parts));
  const { records } = page.content(query.tree, (id) => page.unpack(bytes(query.parts[id])));
  assert.deepEqual(records, { query: { frame: Uint8Array.from({ length: 40 }, (_, k) => k), acknowledged: 3n } });
  const answer = vectors.answer;
  const piece = await page.message(
    metadata(answer.fields),
    "release",
    { salt: new Uint8Array(16) },
    text("FKD\x02 and so on"),
  );
  assert.deepEqual(piece.tree, answer.tree);
  assert.deepEqual(Object.fromEntries([...piece.parts].map(([id, part]) => [id, hex(part)])), answer.parts);
});

test("a large frame travels in pieces and comes together again, also where they are equal", async () => {
  const frame = new Uint8Array(15 << 20).fill(7);
  frame[frame.length - 1] = 1;
  const piece = await page.message(metadata(vectors.answer.fields), "release", { salt: new Uint8Array(16) }, frame);
  const { records, arrays } = page.content(piece.tree, (id) => page.unpack(piece.parts.get(id)));
  assert.deepEqual(Object.keys(records.release), ["salt"]);
  assert.equal(piece.parts.size, 7); // two chunks, Array, ArrayRecord, ConfigRecord, RecordDict, Message
  assert.ok(Buffer.from(arrays.frame).equals(Buffer.from(frame)));
});

test("an object whose head does not fit is no object", () => {
  for (const bad of ["", "Message  3\0ab", "Message 2\0ab", "Message"])
    assert.throws(() => page.unpack(text(bad)), page.ObjectError);
});

test("signatures are DER that others verify, whatever their leading bytes", async () => {
  const key = await page.newKey();
  const pem = await page.pem(key);
  assert.match(pem, /^-----BEGIN PUBLIC KEY-----\n[\w+/=]{64}\n[\w+/=]+\n-----END PUBLIC KEY-----\n$/);
  for (let k = 0; k < 60; k++) {
    const signed = await page.headers(key, pem, 1_795_300_000_000 + k);
    assert.equal(Buffer.from(signed["flwr-public-key"], "base64").toString(), pem);
    const verify = createVerify("sha256").update(signed["flwr-timestamp"]);
    assert.ok(verify.verify(pem, Buffer.from(signed["flwr-signature"], "base64")));
  }
  assert.equal(hex(page.der(bytes("00000001" + "80000000"))), "300a0201010205" + "0080000000");
  await assert.rejects(crypto.subtle.exportKey("pkcs8", key.privateKey));
});

test("a back-off doubles, has an end, and is never in step", () => {
  assert.equal(page.backOff(0, 1), 1);
  assert.equal(page.backOff(3, 1), 8);
  assert.equal(page.backOff(50, 1), 30);
  assert.equal(page.backOff(3, 0), 4);
});
