/** The page itself: what happens, and when. State is in screens.ts, looks are in view.ts, words in words.ts. */
import { cannotAnswer, roundOf, weigh } from "./outlook.js";
import {
  type About,
  AboutError,
  type Chosen,
  type Event,
  FileError,
  Fleet,
  type Happening,
  type Job,
  Node,
  type Photo,
  type PrivateData,
  Refused,
  type Result,
  START,
  type Sent,
  type State,
  type Store,
  TransferError,
  type TransferSet,
  Unreachable,
  asData,
  fetchShard,
  fetchTransfer,
  inverted,
  mayWork,
  newKey,
  next,
  openStore,
  readAbout,
  readFile,
  readPhoto,
  register,
  sameRun,
  sha256,
  surroundings,
  wantsNegative,
} from "./protocol.js";
import { type Actions, type Extras, render } from "./view.js";
import { words } from "./words.js";

const root = document.getElementById("page")!;
let state: State = START;
let extras: Extras = { photos: [], samples: null, roundBytes: 0, cannot: null, host: location.host };
let store: Store;
let node: Node | null = null;
let worker: Worker | null = null;
let screenLock: WakeLockSentinel | null = null;
let woken: (() => void)[] = [];

function dispatch(event: Event): void {
  state = next(state, event);
  render(root, state, extras, actions);
  if (mayWork(state)) {
    woken.forEach((go) => go());
    woken = [];
  }
  void stayAwake();
}

function show(more: Partial<Extras>): void {
  extras = { ...extras, ...more };
  render(root, state, extras, actions);
}

const actions: Actions = {
  agree: () => {
    dispatch({ kind: "agreed" });
    void loadTransfer(state.about!).catch(complain);
  },
  back: () => dispatch({ kind: "back" }),
  shard: (k) => attempt(async () => take(await fetchShard(state.about!, k))),
  photos: (files, label, negative) => attempt(() => addPhotos(files, label, negative)),
  unphoto: (id) => attempt(() => keepPhotos(extras.photos.filter((photo) => photo.id !== id))),
  file: (file) => attempt(async () => take(await readFile(file, state.about!))),
  start: (limit) => attempt(() => start(limit)),
  pause: () => {
    stop();
    dispatch({ kind: "pause" });
  },
  resume: () => {
    dispatch({ kind: "resume" });
    void work();
  },
  leave: () => attempt(() => end("left")),
  again: () =>
    attempt(async () => {
      await store.put({ why: undefined });
      dispatch({ kind: "again" });
    }),
  erase: () => attempt(erase),
  retry: () => location.reload(),
};

/** Do something once, and say in plain words what went wrong if it did. */
function attempt(what: () => Promise<void>): void {
  if (state.busy) return;
  dispatch({ kind: "busy", is: true });
  what()
    .catch(complain)
    .finally(() => state.busy && dispatch({ kind: "busy", is: false }));
}

function complain(error: unknown): void {
  const line = error instanceof Error ? error.message : String(error);
  const said =
    error instanceof Unreachable
      ? words.trouble.offline
      : error instanceof Refused
        ? words.trouble.stranger(line)
        : error instanceof FileError || error instanceof TransferError
          ? line
          : words.trouble.broken(line);
  dispatch({ kind: "notice", line: said });
}

const counts = (y: Int32Array, classes: number): number[] =>
  Array.from({ length: classes }, (_, c) => y.filter((label) => label === c).length);

function chosen(data: PrivateData, about: About): Chosen {
  const title =
    data.kind === "shard"
      ? words.data.shardTitle(data.title)
      : data.kind === "photos"
        ? words.data.photosTitle(data.y.length)
        : data.title;
  return { kind: data.kind, title, counts: counts(data.y, about.classes) };
}

async function take(data: PrivateData): Promise<void> {
  await store.put({ data });
  dispatch({ kind: "chosen", data: chosen(data, state.about!) });
}

async function addPhotos(files: readonly File[], label: number, negative: boolean): Promise<void> {
  const about = state.about!,
    added: Photo[] = [];
  for (const file of files) {
    const pixels = await readPhoto(file, about.shape).catch(() => {
      throw new FileError(words.data.noPicture(file.name));
    });
    const turned = negative && extras.samples !== null && wantsNegative(pixels, extras.samples);
    added.push({ id: crypto.randomUUID(), label, pixels: turned ? inverted(pixels) : pixels });
  }
  await keepPhotos([...extras.photos, ...added]);
}

async function keepPhotos(photos: readonly Photo[]): Promise<void> {
  await store.put({ photos });
  show({ photos });
  if (photos.length) return take(asData(photos, state.about!.shape, ""));
  await store.put({ data: undefined });
  dispatch({ kind: "chosen", data: null });
}

/** The public samples, from this phone if they are here already. */
async function loadTransfer(about: About): Promise<void> {
  const kept = await store.get<TransferSet>("transfer");
  const transfer = kept?.fingerprint === about.fingerprint ? kept : await fetchTransfer(about);
  if (transfer !== kept) await store.put({ transfer });
  show({ samples: transfer.x });
}

async function start(limit: number): Promise<void> {
  const about = state.about!;
  await store.put({ limit: Number.isNaN(limit) ? undefined : limit });
  await loadTransfer(about);
  if (!state.member) await enter();
  await store.put({ agreed: about, run: undefined, complete: undefined, why: undefined });
  void navigator.storage?.persist?.();
  dispatch({ kind: "joined" });
  void work();
}

/** Become a node of the server with the code of the invitation, which is spent by that. */
async function enter(): Promise<void> {
  let key = await store.get<CryptoKeyPair>("key");
  if (!key) await store.put({ key: (key = await newKey()), device: crypto.randomUUID() });
  const code = await store.get<string>("code");
  if (!code) throw new Refused(403, null, words.welcome.uninvited);
  const { authority } = state.about!;
  const id = await register({ code, key, name: `phone-${crypto.randomUUID().slice(0, 4)}`, authority });
  await store.put({ id, code: undefined });
}

async function work(): Promise<void> {
  stop();
  const [key, id, agreed, device] = await Promise.all([
    store.get<CryptoKeyPair>("key"),
    store.get<string>("id"),
    store.get<About>("agreed"),
    store.get<string>("device"),
  ]);
  if (!key || !id || !agreed || !device) return dispatch({ kind: "trouble", line: words.trouble.storage });
  const mine = new Node({
    fleet: new Fleet(key, BigInt(id), device),
    store,
    agreed: agreed.config,
    answer: compute,
    roundOf,
    wait: surroundings.wait,
    digest: sha256,
    tell: (what) => mine === node && happened(what),
    ready: async () => {
      while (node === mine && !mayWork(state)) await new Promise<void>((go) => woken.push(go));
    },
  });
  node = mine;
  await mine.live();
}

function stop(): void {
  node?.stop();
  worker?.terminate();
  node = worker = null;
}

function happened(what: Happening): void {
  switch (what.kind) {
    case "waiting":
      return dispatch({ kind: "doing", doing: "waiting" });
    case "training":
    case "sending":
      return dispatch({ kind: "doing", doing: what.kind, round: what.round });
    case "sent":
      return dispatch({ kind: "sent", sent: what.sent });
    case "unreachable":
      return dispatch({ kind: "doing", doing: "unreachable" });
    case "over":
      return void end("over").catch(complain);
    case "stranger":
      return void reenter(what.line).catch(complain);
    case "broken":
      return dispatch({ kind: "trouble", line: words.trouble.broken(what.line) });
  }
}

/** A server that does not know this phone any more may have sent it a new invitation. */
async function reenter(line: string): Promise<void> {
  stop();
  if (!(await store.get("code"))) return dispatch({ kind: "trouble", line: words.trouble.stranger(line) });
  await enter();
  void work();
}

async function end(why: "over" | "left"): Promise<void> {
  stop();
  await store.put({ why });
  dispatch({ kind: "ended", why });
}

async function erase(): Promise<void> {
  stop();
  for (const name of await store.names("budget.")) indexedDB.deleteDatabase(`fedkd-ledger-${name.slice(7, 39)}`);
  await store.clear();
  for (const name of await caches.keys()) await caches.delete(name);
  for (const one of (await navigator.serviceWorker?.getRegistrations()) ?? []) await one.unregister();
  dispatch({ kind: "deleted" });
}

/** Let the worker answer; it is another thread, so that the page stays awake to touches. */
function compute(job: Job): Promise<Result> {
  const mine = (worker ??= new Worker("worker.js", { type: "module" }));
  return new Promise((resolve) => {
    mine.onmessage = ({ data }: MessageEvent<Result | { readonly share: number; readonly part: string }>) =>
      "share" in data ? dispatch({ kind: "progress", ...data }) : resolve(data);
    mine.onerror = () => {
      mine.terminate(); // out of memory, most likely; the round goes on without this phone
      if (worker === mine) worker = null;
      resolve({ refusal: "the computation broke off on this phone" });
    };
    mine.postMessage(job);
  });
}

async function stayAwake(): Promise<void> {
  const wanted = mayWork(state);
  if (!wanted) await screenLock?.release().catch(() => {});
  if (!wanted || (screenLock && !screenLock.released) || !("wakeLock" in navigator)) return;
  screenLock = await navigator.wakeLock.request("screen").catch(() => null);
}

/** The settings of the server's run; where it cannot be reached, those it had. */
async function askAbout(): Promise<About> {
  try {
    const response = await fetch("/fedkd/about.json", {
      cache: "no-store",
      credentials: "omit",
      signal: AbortSignal.timeout(15_000),
    });
    if (!response.ok) throw new Unreachable(String(response.status));
    const about = readAbout(await response.json());
    await store.put({ about });
    return about;
  } catch (error) {
    const kept = await store.get<About>("about");
    if (error instanceof AboutError || !kept) throw error;
    return kept;
  }
}

/** One tab at a time: two would be one node twice. */
const alone = (): Promise<boolean> =>
  new Promise((resolve) => {
    const held = new Promise<void>(() => {});
    navigator.locks
      .request("fedkd", { ifAvailable: true }, (lock) => {
        resolve(lock !== null);
        return lock === null ? undefined : held;
      })
      .catch(() => resolve(false));
  });

function unfit(): string | null {
  if (!isSecureContext || !crypto.subtle) return words.trouble.insecure;
  const has =
    "locks" in navigator &&
    "indexedDB" in window &&
    "Worker" in window &&
    "OffscreenCanvas" in window &&
    "findLast" in Array.prototype;
  return has ? null : words.trouble.old;
}

async function open(): Promise<void> {
  render(root, state, extras, actions);
  const line = unfit();
  if (line) return dispatch({ kind: "trouble", line });
  if (!(await alone())) return dispatch({ kind: "trouble", line: words.trouble.twice });
  try {
    store = await openStore();
  } catch {
    return dispatch({ kind: "trouble", line: words.trouble.storage });
  }
  const code = new URLSearchParams(location.hash.slice(1)).get("code");
  if (code) await store.put({ code });
  history.replaceState(null, "", location.pathname); // a code is for one device, the address may be shared
  let about: About;
  try {
    about = await askAbout();
  } catch (error) {
    const said = error instanceof AboutError ? words.trouble.broken(error.message) : words.trouble.offline;
    return dispatch({ kind: "trouble", line: said });
  }
  await restore(about);
  void navigator.serviceWorker?.register("sw.js").catch(() => {}); // not with a certificate that was only clicked away
}

async function restore(about: About): Promise<void> {
  const [agreed, data, photos, id, why, invited] = await Promise.all([
    store.get<About>("agreed"),
    store.get<PrivateData>("data"),
    store.get<readonly Photo[]>("photos"),
    store.get<string>("id"),
    store.get<"over" | "left">("why"),
    store.get<string>("code"),
  ]);
  const fits =
    data && data.shape.join() === about.shape.join() && data.y.every((label) => label < about.classes) ? data : null;
  const log = await Promise.all((await store.names("sent.")).map((name) => store.get<Sent>(name)));
  extras = { ...extras, photos: fits && photos ? photos : [], roundBytes: weigh(about), cannot: cannotAnswer(about) };
  dispatch({
    kind: "opened",
    about,
    invited: invited !== undefined,
    member: id !== undefined,
    agreed: agreed !== undefined && sameRun(agreed, about),
    data: fits && chosen(fits, about),
    log: log.filter((one) => one !== undefined),
    why: why ?? null,
  });
  if (state.screen === "joined") void work();
}

document.addEventListener("visibilitychange", () =>
  dispatch({ kind: "visible", is: document.visibilityState === "visible" }),
);
void open();
