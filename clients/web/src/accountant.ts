/** What DP-SGD costs, in Renyi differential privacy at the orders of fedkd/privacy/rdp.py (arXiv:1702.07476). */

import type { Event } from "./codec.js";
import { Refusal } from "./errors.js";

const span = (from: number, to: number, step: number) =>
  Array.from({ length: Math.ceil((to - from) / step) }, (_, i) => from + i * step);
/** The orders alpha at which costs are counted. */
export const ORDERS: readonly number[] = [
  1.25,
  ...span(13, 110, 1).map((a) => a / 10),
  ...span(11, 64, 1),
  ...span(64, 520, 8),
];
const LOG_FACTORIAL = span(0, 513, 1).reduce<number[]>(
  (sums, n) => [...sums, (sums[n - 1] ?? 0) + Math.log(n || 1)],
  [],
);

/** Return what `event` costs at each of the orders, infinite for what is not private or makes no sense. */
export function rdp(event: Event): Float64Array {
  if (event.kind === "no_op") return new Float64Array(ORDERS.length);
  if (event.kind === "non_private" || !sound(event)) return new Float64Array(ORDERS.length).fill(Infinity);
  const { rate, noise, count } = event;
  return Float64Array.from(ORDERS, (alpha) => count * poisson(rate, noise, alpha));
}

/** Return what all `events` cost together. */
export function total(events: readonly Event[]): Float64Array {
  const sum = new Float64Array(ORDERS.length);
  for (const event of events) rdp(event).forEach((cost, a) => (sum[a]! += cost));
  return sum;
}

/** Return an epsilon that holds with `delta` in (0, 1) (Canonne, Kamath and Steinke, arXiv:2004.00010, Prop. 12). */
export function epsilonOf(cost: Float64Array, delta: number): number {
  const least = Math.min(...cost);
  if (least === 0 || delta >= Math.sqrt(-Math.expm1(-least))) return 0; // Bretagnolle and Huber
  return Math.max(0, Math.min(...cost.map((value, a) => value + surcharge(delta, a))));
}

/**
 * Say whether `next` may be done after `before` under a budget, also where what is asked depends on earlier answers.
 *
 * The order must not depend on answers (Feldman and Zrnic, arXiv:2008.11193): it is the one at which the first event
 * that costs anything fits most often. A budget that is reached to a billionth is not exceeded.
 */
export function fits(epsilon: number, delta: number, before: readonly Event[], next: Event): boolean {
  if (next.kind === "no_op") return true;
  const events = [...before, next].filter((event) => event.kind !== "no_op");
  if (events.some((event) => event.kind === "non_private")) return false;
  const first = rdp(events[0]!);
  let [order, most] = [0, -Infinity];
  first.forEach((cost, a) => {
    const room = epsilon - surcharge(delta, a);
    const times = room > 0 ? room / cost : -Infinity;
    if (times > most) [order, most] = [a, times];
  });
  return total(events)[order]! <= epsilon - surcharge(delta, order) + 1e-9 * epsilon;
}

/**
 * Return the least noise, relative to the clip, with which `count` steps at `rate` are (epsilon, delta)-private.
 *
 * By Renyi accounting, whose answer is a few percent above the tight one that a server may have counted with: so a
 * phone takes nobody's word for it, and its noise is never less than the server expects.
 */
export function calibrated(epsilon: number, delta: number, rate: number, count: number): number {
  const enough = (noise: number) => {
    return epsilonOf(rdp({ kind: "sampled_gaussian", rate, noise, count }), delta) <= epsilon;
  };
  let [low, high] = [0.01, 1];
  while (!enough(high)) {
    [low, high] = [high, 4 * high];
    if (high > 1e7) throw new Refusal(`no noise makes ${count} steps private enough for epsilon = ${epsilon}`);
  }
  while (high / low > 1 + 1e-5) {
    const middle = Math.sqrt(low * high);
    if (enough(middle)) high = middle;
    else low = middle;
  }
  return high * 1.0002; // a server's search may end a ten-thousandth above the least there is, and it demands that
}

function sound({ rate, noise, count }: { rate: number; noise: number; count: number }): boolean {
  return rate >= 0 && rate <= 1 && noise >= 0 && noise < Infinity && Number.isInteger(count) && count >= 1;
}

/** Cost of Gaussian noise on a Poisson sample, neighbors add or remove one example (arXiv:1908.10530). */
function poisson(q: number, z: number, alpha: number): number {
  if (q === 0) return 0;
  const plain = z > 0 ? alpha / (2 * z * z) : Infinity;
  const whole = Number.isInteger(alpha);
  // Where the integral has too sharp a peak, sampling is not counted on: it only helps.
  if (q === 1 || z < 0.02 || (!whole && z < 0.2)) return plain;
  const [out, into] = [Math.log1p(-q), Math.log(q)];
  let sum = -Infinity;
  if (whole) {
    for (let k = 0; k <= alpha; k++) {
      const choose = LOG_FACTORIAL[alpha]! - LOG_FACTORIAL[k]! - LOG_FACTORIAL[alpha - k]!;
      sum = logAdd(sum, choose + (alpha - k) * out + k * into + (k * k - k) / (2 * z * z));
    }
  } else {
    const step = Math.min(z, z * z) / 8; // singular at a distance pi z^2 from the real line: an error of e^(-16 pi^2)
    let mass = 0;
    const top = (alpha * alpha) / (2 * z * z); // no term is above e^top
    for (let x = -14 * z; x < alpha + 14 * z + step; x += step) {
      const ratio = alpha * logAdd(out, into + (2 * x - 1) / (2 * z * z));
      mass += Math.exp(ratio - (x * x) / (2 * z * z) - top);
    }
    if (!(mass > 0)) return plain;
    sum = Math.log((mass * step) / (z * Math.sqrt(2 * Math.PI))) + top;
  }
  return Math.min(Math.max(0, sum) / (alpha - 1), plain);
}

/** What the way from Renyi to (epsilon, `delta`) costs at the order of index `a`. */
function surcharge(delta: number, a: number): number {
  const alpha = ORDERS[a]!;
  return Math.log1p(-1 / alpha) - (Math.log(delta) + Math.log(alpha)) / (alpha - 1);
}

function logAdd(a: number, b: number): number {
  const most = Math.max(a, b);
  return most === -Infinity ? most : most + Math.log1p(Math.exp(Math.min(a, b) - most));
}
