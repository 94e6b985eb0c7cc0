// page/sw.ts
var CACHE = "fedkd-page-1";
var SHELL = [
  "/",
  "/app.js",
  "/protocol.js",
  "/science.js",
  "/worker.js",
  "/style.css",
  "/icon.svg",
  "/icon-180.png",
  "/manifest.webmanifest"
];
var scope = self;
async function shell(request, path) {
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
scope.addEventListener(
  "install",
  (event) => event.waitUntil(
    caches.open(CACHE).then((cache) => cache.addAll(SHELL)).then(() => scope.skipWaiting())
  )
);
scope.addEventListener(
  "activate",
  (event) => event.waitUntil(
    caches.keys().then((names) => Promise.all(names.filter((name) => name !== CACHE).map((name) => caches.delete(name)))).then(() => scope.clients.claim())
  )
);
scope.addEventListener("fetch", (event) => {
  const { request } = event, url = new URL(request.url);
  if (request.method === "GET" && url.origin === location.origin && SHELL.includes(url.pathname))
    event.respondWith(shell(request, url.pathname));
});
