/** All that a node needs to take part, without page and science: the page imports it, and so do the tests. */

export * from "./about.js";
export * from "./arrays.js";
export * from "./fleet.js";
export * from "./identity.js";
export * from "./node.js";
export * from "./objects.js";
export * from "./photos.js";
export * from "./proto.js";
export * from "./screens.js";
export * from "./store.js";
export * from "./transfer.js";
