/** Pictures of the camera or the gallery as inputs of a run: cut square, made small, gray where the run is. */
import { type PrivateData } from "./transfer.js";

/** One picture with its label; `pixels` are channels first in [0, 1], as the run's samples are. */
export interface Photo {
  readonly id: string;
  readonly label: number;
  readonly pixels: Float32Array<ArrayBuffer>;
}

/** Inputs that a picture can become: one or three channels of any size. */
export const canPhotograph = (shape: readonly number[]): boolean =>
  shape.length === 3 && (shape[0] === 1 || shape[0] === 3) && shape[1]! >= 2 && shape[2]! >= 2;

/** The largest middle part of a picture (w, h) that has the proportions of (width, height). */
export function middle(
  w: number,
  h: number,
  width: number,
  height: number,
): { x: number; y: number; w: number; h: number } {
  const scale = Math.min(w / width, h / height),
    [a, b] = [width * scale, height * scale];
  return { x: (w - a) / 2, y: (h - b) / 2, w: a, h: b };
}

/** RGBA bytes as channels first in [0, 1]; one channel is the brightness as the eye sees it (ITU-R 601). */
export function pixels(rgba: Uint8ClampedArray | Uint8Array, channels: number): Float32Array<ArrayBuffer> {
  const n = rgba.length / 4,
    out = new Float32Array(channels * n);
  for (let k = 0; k < n; k++) {
    const [r, g, b] = [rgba[4 * k]!, rgba[4 * k + 1]!, rgba[4 * k + 2]!];
    if (channels === 1) out[k] = (0.299 * r + 0.587 * g + 0.114 * b) / 255;
    else [out[k], out[n + k], out[2 * n + k]] = [r / 255, g / 255, b / 255];
  }
  return out;
}

export const inverted = (x: Float32Array): Float32Array<ArrayBuffer> => Float32Array.from(x, (value) => 1 - value);

export const brightness = (x: Float32Array): number => x.reduce((sum, value) => sum + value, 0) / Math.max(1, x.length);

/** Whether a picture should be turned into its negative to look like the public samples: bright where they are dark. */
export const wantsNegative = (photo: Float32Array, samples: Float32Array): boolean =>
  Math.abs(brightness(photo) - brightness(samples)) > Math.abs(1 - brightness(photo) - brightness(samples)) + 0.1;

/** Pictures (channels, h, w) made small: every new pixel is the mean of the area that it covers. */
export function shrink(
  x: Float32Array,
  channels: number,
  from: readonly [number, number],
  to: readonly [number, number],
): Float32Array<ArrayBuffer> {
  const [h, w] = from,
    [height, width] = to,
    out = new Float32Array(channels * height * width);
  const rows = shares(h, height),
    columns = shares(w, width);
  for (let c = 0; c < channels; c++)
    for (let i = 0; i < height; i++)
      for (let j = 0; j < width; j++) {
        let sum = 0;
        for (const [y, a] of rows[i]!) for (const [k, b] of columns[j]!) sum += a * b * x[(c * h + y) * w + k]!;
        out[(c * height + i) * width + j] = sum;
      }
  return out;
}

/** For each of `to` equal parts of a line of `from` pixels: which pixels it covers, and their shares of it. */
function shares(from: number, to: number): [number, number][][] {
  return Array.from({ length: to }, (_, i) => {
    const start = (i * from) / to,
      end = ((i + 1) * from) / to,
      some: [number, number][] = [];
    for (let k = Math.floor(start); k < end - 1e-9; k++)
      some.push([k, (Math.min(end, k + 1) - Math.max(start, k)) / (end - start)]);
    return some;
  });
}

/** Pixels on a side that a picture is read with at most: more would only cost time. */
const SIDE = 1024;

export async function readPhoto(file: Blob, shape: readonly number[]): Promise<Float32Array<ArrayBuffer>> {
  const [channels, height, width] = shape as [number, number, number];
  const picture = await createImageBitmap(file, { imageOrientation: "from-image" });
  const part = middle(picture.width, picture.height, width, height),
    scale = Math.min(1, SIDE / Math.max(part.w, part.h));
  const w = Math.max(width, Math.round(part.w * scale)),
    h = Math.max(height, Math.round(part.h * scale));
  const pen = new OffscreenCanvas(w, h).getContext("2d")!;
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture, part.x, part.y, part.w, part.h, 0, 0, w, h);
  picture.close();
  return shrink(pixels(pen.getImageData(0, 0, w, h).data, channels), channels, [h, w], [height, width]);
}

/** An input as RGBA bytes to show, or null if it is no picture. */
export function rgba(x: Float32Array, shape: readonly number[]): Uint8ClampedArray<ArrayBuffer> | null {
  if (shape.length !== 3 || (shape[0] !== 1 && shape[0] !== 3)) return null;
  const n = shape[1]! * shape[2]!,
    color = shape[0] === 3,
    out = new Uint8ClampedArray(4 * n).fill(255);
  for (let k = 0; k < n; k++) for (let c = 0; c < 3; c++) out[4 * k + c] = 255 * x[(color ? c * n : 0) + k]!;
  return out;
}

export function asData(photos: readonly Photo[], shape: readonly number[], title: string): PrivateData {
  const size = shape.reduce((product, n) => product * n, 1),
    x = new Float32Array(photos.length * size);
  photos.forEach((photo, k) => x.set(photo.pixels, k * size));
  return { kind: "photos", title, shape, x, y: Int32Array.from(photos, (photo) => photo.label) };
}
