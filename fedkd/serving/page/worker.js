// src/worker.ts
import { openStore } from "./protocol.js";
import { Stream, chain, crossEntropy, decodeQuery, encodeRelease, learn, mlp, oneHot, predict, prepare, scheduleOf } from "./science.js";
var store = openStore();
async function answer(job) {
  const open = await store;
  const [about, transfer, data] = await Promise.all([
    open.get("about"),
    open.get("transfer"),
    open.get("data")
  ]);
  if (!about || !transfer || !data) return { refusal: "this phone has no data" };
  const query = decodeQuery(job.frame, transfer.fingerprint, about.rows, about.classes);
  const network = mlp(about.shape, about.classes).initialize(new Stream(job.key));
  const pace = { progress: (part, share) => self.postMessage({ share, part }) };
  const c = about.classes;
  await learn(
    network,
    { x: data.x, shape: about.shape, rows: data.y.length },
    oneHot(data.y, c),
    crossEntropy,
    { epochs: 30, batchSize: 32, learningRate: 3e-3, schedule: scheduleOf("constant"), views: [] },
    new Stream(job.key, "fit"),
    pace
  );
  const size = about.shape.reduce((a, b) => a * b, 1);
  const x = new Float32Array(query.rows.length * size);
  query.rows.forEach((row, k) => x.set(transfer.x.subarray(row * size, (row + 1) * size), k * size));
  const p = await predict(network, { x, shape: about.shape, rows: query.rows.length }, pace);
  const ballot = prepare(chain(String(job.config["release"]), "release"), { p, w: new Float32Array(query.rows.length).fill(1), classes: c, encoding: "float32", weightBits: 0 }, new Stream(job.key, "release"));
  return { frame: encodeRelease(ballot, { kind: "non_private" }, query, BigInt(job.key)) };
}
self.onmessage = ({ data }) => {
  answer(data).then(
    (result) => self.postMessage(result),
    (error) => self.postMessage({ refusal: error.name === "Refusal" ? error.message : `the computation failed: ${error.name}` })
  );
};
