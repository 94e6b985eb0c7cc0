/** What is wrong, what was received, what would be right: one line that may be told to the server. */

/** The phone will not do what it was asked. The line names no private data, so it may leave as a refusal. */
export class Refusal extends Error {
  override name = "Refusal";
}

/** Somebody asked to stop; nothing was released. */
export class Cancelled extends Error {
  override name = "Cancelled";
}
