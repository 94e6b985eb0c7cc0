/** The thread that computes. It reads what it needs from the phone's own storage, and says how far it is. */
import { type About, type Job, type PrivateData, type Result, type TransferSet, openStore } from "./protocol.js";
import { Stream, chain, crossEntropy, decodeQuery, encodeRelease, learn, mlp, oneHot, predict, prepare, scheduleOf } from "./science.js";

const store = openStore();

/** Return the answer to a question, or one line that says why there is none. */
async function answer(job: Job): Promise<Result> {
  const open = await store;
  const [about, transfer, data] = await Promise.all([
    open.get<About>("about"), open.get<TransferSet>("transfer"), open.get<PrivateData>("data"),
  ]);
  if (!about || !transfer || !data) return { refusal: "this phone has no data" };
  const query = decodeQuery(job.frame, transfer.fingerprint, about.rows, about.classes);
  const network = mlp(about.shape, about.classes).initialize(new Stream(job.key));
  const pace = { progress: (part: string, share: number) => self.postMessage({ share, part }) };
  const c = about.classes;
  await learn(network, { x: data.x, shape: about.shape, rows: data.y.length }, oneHot(data.y, c), crossEntropy,
    { epochs: 30, batchSize: 32, learningRate: 0.003, schedule: scheduleOf("constant"), views: [] }, new Stream(job.key, "fit"), pace);
  const size = about.shape.reduce((a, b) => a * b, 1);
  const x = new Float32Array(query.rows.length * size);
  query.rows.forEach((row, k) => x.set(transfer.x.subarray(row * size, (row + 1) * size), k * size));
  const p = await predict(network, { x, shape: about.shape, rows: query.rows.length }, pace);
  const ballot = prepare(chain(String(job.config["release"]), "release"), { p, w: new Float32Array(query.rows.length).fill(1), classes: c, encoding: "float32", weightBits: 0 }, new Stream(job.key, "release"));
  return { frame: encodeRelease(ballot, { kind: "non_private" }, query, BigInt(job.key)) as Uint8Array<ArrayBuffer> };
}

self.onmessage = ({ data }: MessageEvent<Job>) => {
  answer(data).then(
    (result) => self.postMessage(result),
    (error: Error) => self.postMessage({ refusal: error.name === "Refusal" ? error.message : `the computation failed: ${error.name}` }),
  );
};
