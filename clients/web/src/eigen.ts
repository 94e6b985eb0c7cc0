/** The leading eigenvectors of a symmetric matrix, by Lanczos' method with all vectors kept orthogonal. */

import { Stream } from "./random.js";

/** Eigenvalues, descending, and their vectors, a row each. */
export interface Eigen {
  values: Float64Array;
  vectors: Float64Array[];
}

const ENOUGH = 1e-7;

/**
 * Return the `count` leading eigenpairs of the symmetric `matrix` (n, n), or as many as there are.
 *
 * It works in the space of v, S v, S^2 v, ..., which holds the leading ones long before it holds all; `rest` is awaited
 * between two products. What is left of a vector must be below 1e-7 of the largest eigenvalue.
 */
export async function leading(
  matrix: Float64Array,
  n: number,
  count: number,
  rest: (share: number) => Promise<void> = async () => {},
): Promise<Eigen> {
  const stream = new Stream("lanczos", n);
  const basis: Float64Array[] = [];
  const diagonal: number[] = [];
  const beside: number[] = [];
  let next = fresh(basis, n, stream);
  for (;;) {
    basis.push(next);
    await rest(basis.length / n);
    const w = times(matrix, n, next);
    diagonal.push(dot(w, next));
    orthogonalize(w, basis);
    const length = Math.sqrt(dot(w, w));
    const scale = Math.max(...diagonal.map(Math.abs));
    const broken = length <= 1e-12 * scale;
    beside.push(broken ? 0 : length);
    const steps = basis.length;
    if (steps === n || (steps >= 2 * count && steps % 20 === 0)) {
      const small = tridiagonal(diagonal, beside);
      const found = Math.min(count, steps);
      const left = small.last.slice(0, found).map((last) => Math.abs(last * beside[steps - 1]!));
      if (steps === n || Math.max(...left) <= ENOUGH * Math.abs(small.values[0]!)) {
        return { values: small.values.slice(0, found), vectors: small.mixes(found).map((mix) => mixed(basis, mix, n)) };
      }
    }
    next = broken ? fresh(basis, n, stream) : w.map((value) => value / length);
  }
}

/** A random vector of length 1 that is orthogonal to all of `basis`. */
function fresh(basis: Float64Array[], n: number, stream: Stream): Float64Array {
  const w = Float64Array.from({ length: n }, () => stream.uniform() - 0.5);
  orthogonalize(w, basis);
  const length = Math.sqrt(dot(w, w));
  return w.map((value) => value / length);
}

function orthogonalize(w: Float64Array, basis: Float64Array[]): void {
  for (let twice = 0; twice < 2; twice++) {
    for (const v of basis) {
      const share = dot(w, v);
      for (let i = 0; i < w.length; i++) w[i]! -= share * v[i]!;
    }
  }
}

function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
}

function times(matrix: Float64Array, n: number, v: Float64Array): Float64Array {
  const out = new Float64Array(n);
  for (let i = 0; i < n; i++) {
    let s0 = 0;
    let s1 = 0;
    const row = i * n;
    for (let j = 0; j + 1 < n; j += 2) {
      s0 += matrix[row + j]! * v[j]!;
      s1 += matrix[row + j + 1]! * v[j + 1]!;
    }
    out[i] = s0 + s1 + (n % 2 ? matrix[row + n - 1]! * v[n - 1]! : 0);
  }
  return out;
}

function mixed(basis: Float64Array[], mix: Float64Array, n: number): Float64Array {
  const out = new Float64Array(n);
  basis.forEach((v, k) => {
    const share = mix[k]!;
    for (let i = 0; i < n; i++) out[i]! += share * v[i]!;
  });
  return out;
}

/** Eigenvalues of a tridiagonal matrix, descending, the last entry of each vector, and the leading vectors. */
interface Tridiagonal {
  values: Float64Array;
  last: number[];
  mixes(count: number): Float64Array[];
}

/** QL with implicit shifts (Bowdler, Martin, Reinsch and Wilkinson, 1968). */
function tridiagonal(diagonal: number[], beside: number[]): Tridiagonal {
  const n = diagonal.length;
  const d = Float64Array.from(diagonal);
  const e = Float64Array.from(beside);
  e[n - 1] = 0;
  const z = Array.from({ length: n }, (_, i) => Float64Array.from({ length: n }, (_, j) => (i === j ? 1 : 0)));
  for (let l = 0; l < n; l++) {
    for (;;) {
      let m = l;
      while (m < n - 1 && Math.abs(e[m]!) > 2.3e-16 * (Math.abs(d[m]!) + Math.abs(d[m + 1]!))) m++;
      if (m === l) break;
      let g = (d[l + 1]! - d[l]!) / (2 * e[l]!);
      let r = Math.hypot(g, 1);
      g = d[m]! - d[l]! + e[l]! / (g + (g >= 0 ? r : -r));
      let [s, c, p] = [1, 1, 0];
      let i = m - 1;
      for (; i >= l; i--) {
        const f = s * e[i]!;
        const b = c * e[i]!;
        r = Math.hypot(f, g);
        e[i + 1] = r;
        if (r === 0) {
          d[i + 1]! -= p;
          e[m] = 0;
          break;
        }
        s = f / r;
        c = g / r;
        g = d[i + 1]! - p;
        r = (d[i]! - g) * s + 2 * c * b;
        p = s * r;
        d[i + 1] = g + p;
        g = c * r - b;
        const [low, high] = [z[i]!, z[i + 1]!]; // a row each, so that the innermost loop runs along memory
        for (let k = 0; k < n; k++) {
          const kept = high[k]!;
          high[k] = s * low[k]! + c * kept;
          low[k] = c * low[k]! - s * kept;
        }
      }
      if (r === 0 && i >= l) continue;
      d[l]! -= p;
      e[l] = g;
      e[m] = 0;
    }
  }
  const order = Array.from(d.keys()).sort((i, j) => d[j]! - d[i]!);
  return {
    values: Float64Array.from(order, (i) => d[i]!),
    last: order.map((i) => z[i]![n - 1]!),
    mixes: (count) => order.slice(0, count).map((i) => z[i]!),
  };
}
