/** The public samples that all predict on, and the private ones of this phone, as the learner takes them. */
import { type About } from "./about.js";
import { FileError, type Tensor, type Tensors, npz, safetensors } from "./arrays.js";
import { Unreachable } from "./fleet.js";
import { sha256 } from "./objects.js";
import { join } from "./proto.js";

export interface TransferSet {
  readonly fingerprint: string;
  readonly x: Float32Array<ArrayBuffer>;
}

/** Private examples: `x` is row after row, `y` class numbers. */
export interface PrivateData {
  readonly kind: "shard" | "photos" | "file";
  readonly title: string;
  readonly shape: readonly number[];
  readonly x: Float32Array<ArrayBuffer>;
  readonly y: Int32Array<ArrayBuffer>;
}

/** A download that is not what was promised. */
export class TransferError extends Error {}

const MOST = 256 * 1024 * 1024;

/** The name of an array by its type, shape, content and order; the same on every machine. */
export const fingerprint = (shape: readonly number[], x: Float32Array<ArrayBuffer>): Promise<string> =>
  sha256(
    join(
      new TextEncoder().encode(`<f4 (${shape.join(", ")}${shape.length === 1 ? "," : ""})`),
      new Uint8Array(x.buffer, x.byteOffset, x.byteLength),
    ),
  );

async function download(path: string, progress: (share: number) => void, expected: number): Promise<Uint8Array> {
  let response: Response;
  const chunks: Uint8Array[] = [];
  let size = 0;
  try {
    response = await fetch(path, { credentials: "omit", redirect: "error" });
    if (!response.ok) throw new TransferError(`${path} is not there (${response.status})`);
    const reader = response.body!.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      chunks.push(part.value);
      size += part.value.length;
      if (size > MOST) throw new TransferError(`more than ${MOST >> 20} MiB came for ${path}`);
      progress(Math.min(1, size / expected));
    }
  } catch (error) {
    if (error instanceof TransferError) throw error;
    throw new Unreachable(`the download broke off: ${(error as Error).message}`);
  }
  return join(...chunks);
}

export async function fetchTransfer(about: About, progress: (share: number) => void = () => {}): Promise<TransferSet> {
  const shape = [about.rows, ...about.shape];
  const size = shape.reduce((product, n) => product * n, 4);
  const file = await download(`/fedkd/transfer/${about.fingerprint}`, progress, size);
  const x = safetensors(file).get("x");
  if (!x || !(x.data instanceof Float32Array) || x.shape.join() !== shape.join())
    throw new TransferError(`the transfer set is ${x?.shape.join(" x ") ?? "empty"}, expected ${shape.join(" x ")}`);
  const found = await fingerprint(shape, x.data);
  if (found !== about.fingerprint)
    throw new TransferError(
      `the transfer set was changed on its way: it is ${found.slice(0, 16)}, expected ` +
        about.fingerprint.slice(0, 16),
    );
  return { fingerprint: found, x: x.data };
}

export async function fetchShard(about: About, k: number): Promise<PrivateData> {
  const file = await download(`/fedkd/shard/${k}`, () => {}, 1 << 20);
  return examples(safetensors(file), about, "shard", String(k));
}

export async function readFile(file: Blob & { readonly name: string }, about: About): Promise<PrivateData> {
  if (file.size > MOST) throw new FileError(`a file of at most ${MOST >> 20} MiB, please`);
  const bytes = new Uint8Array(await file.arrayBuffer());
  const zip = bytes[0] === 0x50 && bytes[1] === 0x4b;
  return examples(zip ? await npz(bytes) : safetensors(bytes), about, "file", file.name);
}

/** The arrays `x` and `y` of a file as private examples of this run, or a line that says what does not fit. */
export function examples(file: Tensors, about: About, kind: "shard" | "file", title: string): PrivateData {
  const x = file.get("x"),
    y = file.get("y");
  if (!x || !y)
    throw new FileError(`the file needs two arrays, x and y; it has ${[...file.keys()].join(", ") || "none"}`);
  const flat = about.shape.join(" x ");
  // (N, H, W) is an image as well.
  const gray = about.shape.length === 3 && about.shape[0] === 1 && x.shape.length === 3;
  const shape = gray ? [1, ...x.shape.slice(1)] : x.shape.slice(1);
  if (shape.join() !== about.shape.join())
    throw new FileError(`rows of x must be ${flat}, got ${x.shape.slice(1).join(" x ") || "single numbers"}`);
  if (y.shape.reduce((product, n) => product * n, 1) !== x.shape[0])
    throw new FileError(`x has ${x.shape[0]} rows, y has ${y.data.length} labels`);
  const labels = Int32Array.from(y.data);
  const wrong = labels.find((label, k) => label !== y.data[k] || label < 0 || label >= about.classes);
  if (wrong !== undefined)
    throw new FileError(`labels must be whole numbers from 0 to ${about.classes - 1}, got ${wrong}`);
  return { kind, title, shape: about.shape, x: inputs(x), y: labels };
}

function inputs(x: Tensor): Float32Array<ArrayBuffer> {
  if (x.data instanceof Uint8Array) return Float32Array.from(x.data, (value) => Math.fround(value / 255));
  const values = x.data instanceof Float32Array ? x.data : Float32Array.from(x.data);
  if (!values.every(Number.isFinite)) throw new FileError("x must be finite numbers");
  return values;
}
