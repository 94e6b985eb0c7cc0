/** What a page can say before it computes anything: whether it can answer at all, and how much an answer weighs. */
import { type About } from "./protocol.js";
import { type Ballot, Stream, chain, QUERY, configOf, encodeRelease, prepare, read } from "./science.js";

/** Bytes of all requests of a round beside the frame: about ten, with a node, a run and names of objects. */
const REQUESTS = 1500;

/** The round of a question, for showing; the learner looks at the rest of it. */
export const roundOf = (frame: Uint8Array): number => read(frame, QUERY)[0].round;

/** Why this phone cannot take part in a run, or null. */
export function cannotAnswer({ config }: About): string | null {
  try {
    configOf(config);
    return null;
  } catch (error) {
    return (error as Error).message;
  }
}

/** About how many bytes leave in a round: a frame of this run's release that says nothing, and its requests. */
export function weigh(about: About): number {
  const { rows, classes, config } = about,
    n = Math.min(rows, 2000),
    alike = config["expertise"] === "uniform";
  try {
    const flat: Ballot = {
      p: new Float32Array(n * classes).fill(1 / classes),
      w: Float32Array.from({ length: n }, (_, k) => (alike ? 1 : 1 + (k % 7))),
      classes,
      encoding: "float32",
      weightBits: 0,
    };
    const ballot = prepare(chain(String(config["release"]), "release"), flat, new Stream("weigh"));
    const query = { round: 1, rows: new Int32Array(n), classes, fingerprint: about.fingerprint, feedback: null };
    const frame = encodeRelease(ballot, { kind: "non_private" }, query, 1n << 63n);
    return Math.round((frame.length * rows) / n) + REQUESTS;
  } catch {
    return 2 * rows * (classes + 2) + REQUESTS;
  }
}
