/** Fixed features of inputs, the same numbers as fedkd/features.py: nothing is fitted, so they are public. */

/** Inputs (rows, ...shape), one after the other. */
export interface Inputs {
  x: Float32Array;
  rows: number;
  shape: readonly number[];
}

/** Images of fewer pixels a side have no shapes. */
export const SIDE = 8;
const { fround } = Math;
const PI = fround(Math.PI);
const CELLS = 7;
const BINS = 8;

/** How many numbers one input has. */
export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, side) => product * side, 1);
}

/** What rows of inputs are compared by: `width` numbers each, written to `out` for rows `from` to `to`. */
export interface Features {
  width: number;
  write(inputs: Inputs, from: number, to: number, out: Float32Array): void;
}

/** Shapes where inputs are images that have some, else the inputs as they are. */
export function featuresOf(shape: readonly number[]): Features {
  if (shape.length === 3 && Math.min(shape[1]!, shape[2]!) >= SIDE) return shapes(shape);
  const width = sizeOf(shape);
  return { width, write: (inputs, from, to, out) => out.set(inputs.x.subarray(from * width, to * width)) };
}

/**
 * Histograms of oriented gradients, square-rooted, of images (channels, height, width) (Dalal and Triggs, 2005).
 *
 * Steps are rounded to single precision where numpy rounds them, so that an edge falls into the same bin.
 */
export function shapes(shape: readonly number[]): Features {
  const [channels, height, width] = shape as [number, number, number];
  const cells = Math.min(CELLS, Math.floor(height / 2), Math.floor(width / 2));
  const size = sizeOf(shape);
  const histogram = new Float64Array(cells * cells * BINS);
  const own = (cells - 1) ** 2 * 4 * BINS;
  return {
    width: own,
    write(inputs, from, to, out) {
      for (let row = from; row < to; row++) {
        histogram.fill(0);
        for (let y = 0; y < height; y++) {
          for (let x = 0; x < width; x++) {
            let [gx, gy, strength] = [0, 0, -1];
            for (let c = 0; c < channels; c++) {
              const at = row * size + (c * height + y) * width + x;
              const dx = x > 0 && x < width - 1 ? fround(inputs.x[at + 1]! - inputs.x[at - 1]!) : 0;
              const dy = y > 0 && y < height - 1 ? fround(inputs.x[at + width]! - inputs.x[at - width]!) : 0;
              const length = fround(Math.sqrt(dx * dx + dy * dy));
              if (length > strength) [gx, gy, strength] = [dx, dy, length];
            }
            if (strength === 0) continue;
            let angle = fround(fround(Math.atan2(gy, gx)) % PI);
            if (angle < 0) angle = fround(angle + PI);
            angle = fround(angle * fround(BINS / Math.PI));
            const low = Math.floor(angle);
            const share = fround(fround(angle - low) * strength); // what goes to the next direction
            const cell = (Math.floor((y * cells) / height) * cells + Math.floor((x * cells) / width)) * BINS;
            histogram[cell + (low % BINS)]! += fround(strength - share);
            histogram[cell + ((low + 1) % BINS)]! += share;
          }
        }
        blocks(histogram, cells, out, (row - from) * own);
      }
    },
  };
}

/** Write each block of 2 x 2 cells with length 1, rooted, to `out` from `at` on. */
function blocks(histogram: Float64Array, cells: number, out: Float32Array, at: number): void {
  for (let i = 0; i < cells - 1; i++) {
    for (let j = 0; j < cells - 1; j++) {
      const corners = [i * cells + j, (i + 1) * cells + j, i * cells + j + 1, (i + 1) * cells + j + 1];
      let squares = 0;
      for (const corner of corners) {
        for (let b = 0; b < BINS; b++) squares += fround(Math.max(histogram[corner * BINS + b]!, 0)) ** 2;
      }
      const length = fround(Math.sqrt(fround(squares + 0.1))); // of a flat block the noise is not blown up
      for (const corner of corners) {
        for (let b = 0; b < BINS; b++) {
          out[at++] = Math.sqrt(fround(fround(Math.max(histogram[corner * BINS + b]!, 0)) / length));
        }
      }
    }
  }
}
