/** How long work stays polite: it tells how far it is, lets others run, and stops when it is asked to. */

import { Cancelled } from "./errors.js";

/** What a caller may give to whatever takes long. */
export interface Pace {
  /** Told what is being done and which share of it, 0 to 1. */
  progress?: (doing: string, share: number) => void;
  signal?: AbortSignal;
}

const LONGEST = 50; // milliseconds

/** Return a function to call between two pieces of work: it throws when cancelled and gives way now and then. */
export function pacer(pace: Pace, doing: string): (share: number) => Promise<void> {
  let last = performance.now();
  return async (share) => {
    if (performance.now() - last > LONGEST) {
      pace.progress?.(doing, share);
      await new Promise((resolve) => setTimeout(resolve, 0));
      last = performance.now();
    }
    if (pace.signal?.aborted) throw new Cancelled(`stopped while ${doing}`);
  };
}
