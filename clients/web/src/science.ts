/** All that a client computes, in one file without a page: the worker imports it, and so do the tests. */

export * from "./accountant.js";
export * from "./codec.js";
export * from "./config.js";
export * from "./eigen.js";
export * from "./errors.js";
export * from "./expertise.js";
export * from "./features.js";
export * from "./frames.js";
export * from "./learner.js";
export * from "./ledger.js";
export * from "./linear.js";
export * from "./losses.js";
export * from "./models.js";
export * from "./net.js";
export * from "./pace.js";
export * from "./privacy.js";
export * from "./random.js";
export * from "./release.js";
export * from "./space.js";
export * from "./spec.js";
export * from "./storage.js";
export * from "./symbols.js";
export * from "./training.js";
