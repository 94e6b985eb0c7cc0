/**
 * Keeps the page itself, so that it opens without a network. The network comes first, so that a new version of the
 * server is never answered by an old page. Nothing of the federation passes through here: no question, no answer.
 */
const CACHE = "fedkd-page-1";
const SHELL = [
  "/",
  "/app.js",
  "/protocol.js",
  "/science.js",
  "/worker.js",
  "/style.css",
  "/icon.svg",
  "/icon-180.png",
  "/manifest.webmanifest",
];

/** What a service worker is given, as far as it is used here: the compiler's own list is that of a page. */
interface Extendable extends Event {
  waitUntil(what: Promise<unknown>): void;
}
interface Fetching extends Extendable {
  readonly request: Request;
  respondWith(what: Promise<Response>): void;
}
interface Scope {
  addEventListener(name: string, listener: (event: never) => void): void;
  skipWaiting(): Promise<void>;
  readonly clients: { claim(): Promise<void> };
}

const scope = self as unknown as Scope;

async function shell(request: Request, path: string): Promise<Response> {
  const cache = await caches.open(CACHE);
  try {
    const fresh = await fetch(request);
    if (fresh.ok) await cache.put(path, fresh.clone());
    return fresh;
  } catch (error) {
    const kept = await cache.match(path);
    if (kept) return kept;
    throw error;
  }
}

scope.addEventListener("install", (event: Extendable) =>
  event.waitUntil(
    caches
      .open(CACHE)
      .then((cache) => cache.addAll(SHELL))
      .then(() => scope.skipWaiting()),
  ),
);

scope.addEventListener("activate", (event: Extendable) =>
  event.waitUntil(
    caches
      .keys()
      .then((names) => Promise.all(names.filter((name) => name !== CACHE).map((name) => caches.delete(name))))
      .then(() => scope.clients.claim()),
  ),
);

scope.addEventListener("fetch", (event: Fetching) => {
  const { request } = event,
    url = new URL(request.url);
  if (request.method === "GET" && url.origin === location.origin && SHELL.includes(url.pathname))
    event.respondWith(shell(request, url.pathname));
});
