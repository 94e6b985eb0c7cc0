/** Arrays as files hold them: safetensors and npz. What is read is bounded by the bytes that are there. */

/** A file that is not what it should be. */
export class FileError extends Error {}

export interface Tensor {
  readonly shape: readonly number[];
  /** Bytes stay bytes, all whole numbers become Int32Array, all else Float32Array. */
  readonly data: Float32Array<ArrayBuffer> | Int32Array<ArrayBuffer> | Uint8Array<ArrayBuffer>;
}

export type Tensors = ReadonlyMap<string, Tensor>;

type Kind = "f2" | "f4" | "f8" | "u1" | "i1" | "u2" | "i2" | "u4" | "i4" | "u8" | "i8" | "b1";

const SAFE: Readonly<Record<string, Kind>> = {
  F16: "f2",
  F32: "f4",
  F64: "f8",
  U8: "u1",
  I8: "i1",
  U16: "u2",
  I16: "i2",
  U32: "u4",
  I32: "i4",
  U64: "u8",
  I64: "i8",
  BOOL: "b1",
};
const count = (shape: readonly number[]): number => shape.reduce((product, n) => product * n, 1);
const decoder = new TextDecoder();

function tensor(bytes: Uint8Array, kind: Kind, shape: readonly number[], name: string): Tensor {
  const size = Number(kind[1]),
    n = count(shape);
  if (!shape.every((axis) => Number.isSafeInteger(axis) && axis >= 0) || n * size !== bytes.length)
    throw new FileError(`${name} is cut short: ${bytes.length} bytes for ${shape.join(" x ")} numbers`);
  const buffer = bytes.slice().buffer as ArrayBuffer,
    view = new DataView(buffer);
  if (kind === "u1" || kind === "b1") return { shape, data: new Uint8Array(buffer) };
  if (kind === "f4") return { shape, data: new Float32Array(buffer) };
  if (kind === "f8") return { shape, data: Float32Array.from(new Float64Array(buffer)) };
  if (kind === "f2") return { shape, data: Float32Array.from(new Uint16Array(buffer), half) };
  const at: Record<string, (k: number) => number> = {
    i1: (k) => view.getInt8(k),
    u2: (k) => view.getUint16(2 * k, true),
    i2: (k) => view.getInt16(2 * k, true),
    u4: (k) => view.getUint32(4 * k, true),
    i4: (k) => view.getInt32(4 * k, true),
    u8: (k) => Number(view.getBigUint64(8 * k, true)),
    i8: (k) => Number(view.getBigInt64(8 * k, true)),
  };
  return { shape, data: Int32Array.from({ length: n }, (_, k) => at[kind]!(k)) };
}

function half(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1,
    exponent = (bits >> 10) & 31,
    rest = bits & 1023;
  if (exponent === 31) return rest ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + rest / 1024) : 2 ** -14 * (rest / 1024));
}

export function safetensors(bytes: Uint8Array): Tensors {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const size = bytes.length >= 8 ? Number(view.getBigUint64(0, true)) : Infinity;
  if (size > bytes.length - 8 || size > 1 << 24) throw new FileError("this is not a safetensors file");
  const found = new Map<string, Tensor>();
  let header: Record<string, { dtype?: unknown; shape?: unknown; data_offsets?: unknown }>;
  try {
    header = JSON.parse(decoder.decode(bytes.subarray(8, 8 + size)));
  } catch {
    throw new FileError("this is not a safetensors file");
  }
  for (const [name, { dtype, shape, data_offsets }] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const kind = SAFE[String(dtype)];
    if (!kind || !Array.isArray(shape) || !Array.isArray(data_offsets))
      throw new FileError(`${name}: ${String(dtype)} is not read here`);
    const [from, to] = data_offsets.map((at) => 8 + size + Number(at));
    found.set(name, tensor(bytes.subarray(from, to), kind, shape.map(Number), name));
  }
  return found;
}

/** One array of numpy's own format. */
export function npy(bytes: Uint8Array, name: string): Tensor {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 12 || decoder.decode(bytes.subarray(1, 6)) !== "NUMPY")
    throw new FileError(`${name} is not an array of numpy`);
  const wide = bytes[6]! > 1,
    size = wide ? view.getUint32(8, true) : view.getUint16(8, true),
    start = (wide ? 12 : 10) + size;
  const header = decoder.decode(bytes.subarray(wide ? 12 : 10, start));
  const kind = /'descr': '[<|]([fiub]\d)'/.exec(header)?.[1] as Kind | undefined;
  const shape = /'shape': \(([\d, ]*)\)/.exec(header)?.[1];
  if (!kind || shape === undefined || header.includes("'fortran_order': True"))
    throw new FileError(`${name}: save it as plain numbers, row by row (numpy.ascontiguousarray)`);
  return tensor(
    bytes.subarray(start),
    kind,
    shape
      .split(",")
      .filter((part) => part.trim())
      .map(Number),
    name,
  );
}

/** The arrays of an npz: a zip of npy files, stored or deflated. */
export async function npz(bytes: Uint8Array): Promise<Tensors> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const found = new Map<string, Tensor>();
  let end = bytes.length - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new FileError("this is not an npz file");
  let at = view.getUint32(end + 16, true);
  for (let k = view.getUint16(end + 10, true); k > 0; k--) {
    if (at + 46 > bytes.length || view.getUint32(at, true) !== 0x02014b50)
      throw new FileError("this npz file is damaged");
    const method = view.getUint16(at + 10, true),
      size = view.getUint32(at + 20, true),
      full = view.getUint32(at + 24, true);
    const named = view.getUint16(at + 28, true),
      local = view.getUint32(at + 42, true);
    const name = decoder.decode(bytes.subarray(at + 46, at + 46 + named)).replace(/\.npy$/, "");
    at += 46 + named + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
    if (local + 30 > bytes.length || (method !== 0 && method !== 8)) throw new FileError("this npz file is damaged");
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    const stored = bytes.subarray(start, start + size);
    found.set(name, npy(method ? await inflate(stored, full) : stored, name));
  }
  return found;
}

/** Inflate to `size` bytes, and never to more: a small file may unpack to more than a phone has. */
async function inflate(data: Uint8Array, size: number): Promise<Uint8Array> {
  const stream = new Blob([data as Uint8Array<ArrayBuffer>])
    .stream()
    .pipeThrough(new DecompressionStream("deflate-raw"));
  const reader = stream.getReader(),
    whole = new Uint8Array(Math.min(size, 1 << 29));
  let at = 0;
  for (;;) {
    const { done, value } = await reader.read().catch(() => ({ done: true, value: undefined }));
    if (done || !value) break;
    if (at + value.length > whole.length) throw new FileError("this npz file unpacks to more than it says");
    whole.set(value, at);
    at += value.length;
  }
  if (at !== size) throw new FileError("this npz file is damaged");
  return whole;
}
