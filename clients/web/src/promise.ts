/** What a page can promise before it computes anything: whether it can answer at all, and how much that weighs. */
import { type About } from "./about.js";

export { roundOf } from "./science.js";

export const cannotAnswer = (_: About): string | null => null;

export const weigh = (about: About): number => 45 + about.rows * 2 * about.classes + 4 * about.rows + 1500;
