/** What the server says of itself and its run, checked before anything is made of it. */

export type Config = Readonly<Record<string, string | number | boolean>>;

export interface About {
  readonly name: string;
  readonly version: string;
  readonly classes: number;
  readonly classNames: readonly string[];
  /** Of one input: channels, height, width, or a single length. */
  readonly shape: readonly number[];
  /** Samples of the transfer set. */
  readonly rows: number;
  readonly fingerprint: string;
  readonly config: Config;
  /** How many shares of demo data there are to have. */
  readonly shards: number;
  /** The start of the SHA-256 of the server's authority, empty if it names none: what who joins signs for. */
  readonly authority: string;
}

/** What a server says that no phone can work with. */
export class AboutError extends Error {}

/** The version of the frames that this page reads and writes. */
export const WIRE = 2;

const whole = (value: unknown, least: number, most: number): value is number =>
  typeof value === "number" && Number.isInteger(value) && value >= least && value <= most;

export function readAbout(said: unknown): About {
  if (typeof said !== "object" || said === null) throw new AboutError("the server says nothing of its run");
  const about = said as Record<string, unknown>;
  const { wire, classes, shape, rows, fingerprint, config, shards } = about;
  if (wire !== WIRE)
    throw new AboutError(`the server speaks version ${String(wire)}, this page version ${WIRE}: reload it`);
  if (!whole(classes, 2, 65_535)) throw new AboutError(`classes must be a number from 2 on, got ${String(classes)}`);
  if (!Array.isArray(shape) || !shape.length || shape.length > 4 || !shape.every((n) => whole(n, 1, 1_000_000)))
    throw new AboutError(`the shape of an input must be whole numbers, got ${JSON.stringify(shape)}`);
  if (!whole(rows, 1, 10_000_000)) throw new AboutError(`the transfer set must have samples, got ${String(rows)}`);
  if (typeof fingerprint !== "string" || !/^[0-9a-f]{64}$/.test(fingerprint))
    throw new AboutError("the transfer set has no fingerprint");
  if (typeof config !== "object" || config === null) throw new AboutError("the server names no settings of its run");
  const [names, authority] = [about["class_names"], about["authority"]];
  const named = Array.isArray(names) && names.length === classes ? names.map(String) : [];
  return {
    name: String(about["name"] ?? "run").slice(0, 80),
    version: String(about["fedkd"] ?? "?").slice(0, 20),
    classes,
    classNames: named.length ? named : Array.from({ length: classes }, (_, c) => String(c)),
    shape: shape as number[],
    rows,
    fingerprint,
    config: config as Config,
    shards: whole(shards, 0, 1_000_000) ? shards : 0,
    authority: typeof authority === "string" ? authority.slice(0, 64) : "",
  };
}

/** What may differ between the settings that were agreed to and those of a run: nothing that changes what leaves. */
const FREE = new Set([
  "output",
  "resume",
  "deadline",
  "grace",
  "pooled",
  "record",
  "resolved",
  "quorum",
  "late",
  "preset",
  "threads",
  "run-name", // known once it runs: what a ledger files it under, as the run's number is
]);

/** The first setting of `run` that is not as agreed, or null. */
export function differs(agreed: Config, run: Config): string | null {
  const keys = new Set([...Object.keys(agreed), ...Object.keys(run)]);
  return [...keys].sort().find((key) => !FREE.has(key) && agreed[key] !== run[key]) ?? null;
}

/** Two runs are the same to a phone's owner if they ask for the same. */
export const sameRun = (a: About, b: About): boolean =>
  a.name === b.name &&
  a.fingerprint === b.fingerprint &&
  a.classes === b.classes &&
  differs(a.config, b.config) === null;
