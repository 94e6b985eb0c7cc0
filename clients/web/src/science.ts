/** All that a client computes, in one file without a page: `import { answer } from "./science.js"`. */
export const WIRE = 2;
