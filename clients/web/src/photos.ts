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
export function middle(w: number, h: number, width: number, height: number): { x: number; y: number; w: number; h: number } {
  const scale = Math.min(w / width, h / height), [a, b] = [width * scale, height * scale];
  return { x: (w - a) / 2, y: (h - b) / 2, w: a, h: b };
}

/** RGBA bytes as channels first in [0, 1]; one channel is the brightness as the eye sees it (ITU-R 601). */
export function pixels(rgba: Uint8ClampedArray | Uint8Array, channels: number): Float32Array<ArrayBuffer> {
  const n = rgba.length / 4, out = new Float32Array(channels * n);
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

export async function readPhoto(file: Blob, shape: readonly number[]): Promise<Float32Array<ArrayBuffer>> {
  const [channels, height, width] = shape as [number, number, number];
  const picture = await createImageBitmap(file, { imageOrientation: "from-image" });
  const part = middle(picture.width, picture.height, width, height);
  // Halved until it is nearly small enough: one large step would skip most of the pixels.
  let [w, h] = [part.w, part.h];
  let from: CanvasImageSource = picture;
  let at = part;
  while (true) {
    [w, h] = w / 2 > width && h / 2 > height ? [w / 2, h / 2] : [width, height];
    const canvas = new OffscreenCanvas(Math.ceil(w), Math.ceil(h));
    const pen = canvas.getContext("2d")!;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(from, at.x, at.y, at.w, at.h, 0, 0, canvas.width, canvas.height);
    if (w === width && h === height) {
      picture.close();
      return pixels(pen.getImageData(0, 0, width, height).data, channels);
    }
    from = canvas;
    at = { x: 0, y: 0, w: canvas.width, h: canvas.height };
  }
}

/** An input as RGBA bytes to show, or null if it is no picture. */
export function rgba(x: Float32Array, shape: readonly number[]): Uint8ClampedArray<ArrayBuffer> | null {
  if (shape.length !== 3 || (shape[0] !== 1 && shape[0] !== 3)) return null;
  const n = shape[1]! * shape[2]!, color = shape[0] === 3, out = new Uint8ClampedArray(4 * n).fill(255);
  for (let k = 0; k < n; k++) for (let c = 0; c < 3; c++) out[4 * k + c] = 255 * x[(color ? c * n : 0) + k]!;
  return out;
}

export function asData(photos: readonly Photo[], shape: readonly number[], title: string): PrivateData {
  const size = shape.reduce((product, n) => product * n, 1), x = new Float32Array(photos.length * size);
  photos.forEach((photo, k) => x.set(photo.pixels, k * size));
  return { kind: "photos", title, shape, x, y: Int32Array.from(photos, (photo) => photo.label) };
}
