// Answers one query in the name of several phones: tests/test_web.py tells it all on standard input, in JSON, and reads
// frames, refusals and ledgers from standard output. Arrays are base64, little-endian.
import { readFileSync } from "node:fs";
import { bytes, fedkd, hex } from "./support.mjs";

const { query, config, phones, classes, shape, transfer, fingerprint } = JSON.parse(readFileSync(0, "utf8"));
const decoded = (text, Kind) => {
  const raw = Buffer.from(text, "base64");
  return new Kind(raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.length));
};
const inputs = (text) => {
  const x = decoded(text, Float32Array);
  return { x, rows: x.length / fedkd.sizeOf(shape), shape };
};
const pool = inputs(transfer);
const surroundings = new fedkd.Surroundings(pool);
const budget = config.epsilon ? { epsilon: config.epsilon, delta: config.delta } : null;
const told = [];
for (const { key, x, y } of phones) {
  const store = fedkd.memoryStore();
  const ledger = await fedkd.Ledger.open(store, { owner: `phone-${key}`, budget });
  const mine = { ...inputs(x), y: decoded(y, Int32Array) };
  const site = { key: BigInt(key), mine, classes, transfer: pool, fingerprint, run: "1" };
  const started = performance.now();
  const said = await fedkd.answer(bytes(query), config, site, null, ledger, { surroundings });
  const seconds = (performance.now() - started) / 1000;
  const frame = said.frame && hex(said.frame);
  told.push({ frame, refusal: said.refusal, records: store.records, seconds });
}
process.stdout.write(JSON.stringify(told));
