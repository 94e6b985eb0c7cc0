// src/outlook.ts
import "./protocol.js";
import { Stream, chain, QUERY, configOf, encodeRelease, prepare, read } from "./science.js";
var REQUESTS = 1500;
var roundOf = (frame) => read(frame, QUERY)[0].round;
function cannotAnswer({ config }) {
  try {
    configOf(config);
    return null;
  } catch (error) {
    return error.message;
  }
}
function weigh(about) {
  const { rows, classes, config } = about, n = Math.min(rows, 2e3), alike = config["expertise"] === "uniform";
  try {
    const flat = {
      p: new Float32Array(n * classes).fill(1 / classes),
      w: Float32Array.from({ length: n }, (_, k) => alike ? 1 : 1 + k % 7),
      classes,
      encoding: "float32",
      weightBits: 0
    };
    const ballot = prepare(chain(String(config["release"]), "release"), flat, new Stream("weigh"));
    const query = { round: 1, rows: new Int32Array(n), classes, fingerprint: about.fingerprint, feedback: null };
    const frame = encodeRelease(ballot, { kind: "non_private" }, query, 1n << 63n);
    return Math.round(frame.length * rows / n) + REQUESTS;
  } catch {
    return 2 * rows * (classes + 2) + REQUESTS;
  }
}

// src/app.ts
import {
  AboutError,
  FileError as FileError2,
  Fleet,
  Node,
  Refused as Refused2,
  START,
  TransferError,
  Unreachable as Unreachable2,
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
  sha256 as sha2562,
  surroundings,
  wantsNegative
} from "./protocol.js";

// src/dom.ts
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(
    ...children.filter((child) => child !== null && child !== void 0 && child !== false)
  );
  return element;
}
var list = (items) => h("ul", {}, ...items.map((item) => h("li", {}, item)));
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
function picture(rgba2, width, height, label) {
  const canvas = h("canvas", { width, height, role: "img", "aria-label": label });
  canvas.getContext("2d").putImageData(new ImageData(rgba2, width, height), 0, 0);
  return canvas;
}

// src/arrays.ts
var decoder = new TextDecoder();

// src/proto.ts
var encoder = new TextEncoder();
var decoder2 = new TextDecoder("utf-8", { fatal: true });
var NOTHING = new Uint8Array(0);

// src/objects.ts
var LARGE = 4 * 1024 * 1024;
var CHUNK = 5 * 1024 * 1024;
var MOST = 512 * 1024 * 1024;
var encoder2 = new TextEncoder();
var decoder3 = new TextDecoder();

// src/identity.ts
var encoder3 = new TextEncoder();

// src/fleet.ts
var MOST2 = 64 * 1024 * 1024;

// src/transfer.ts
var MOST3 = 256 * 1024 * 1024;

// src/photos.ts
var canPhotograph = (shape) => shape.length === 3 && (shape[0] === 1 || shape[0] === 3) && shape[1] >= 2 && shape[2] >= 2;
function rgba(x, shape) {
  if (shape.length !== 3 || shape[0] !== 1 && shape[0] !== 3) return null;
  const n = shape[1] * shape[2], color = shape[0] === 3, out = new Uint8ClampedArray(4 * n).fill(255);
  for (let k = 0; k < n; k++) for (let c = 0; c < 3; c++) out[4 * k + c] = 255 * x[(color ? c * n : 0) + k];
  return out;
}

// src/screens.ts
var LEAST = 2;
var examplesOf = (data2) => data2?.counts.reduce((sum, n) => sum + n, 0) ?? 0;
var canStart = (state2) => state2.screen === "data" && !state2.busy && examplesOf(state2.data) >= LEAST && (state2.member || state2.invited);

// src/words.ts
var count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
function size(bytes) {
  if (bytes < 1e3) return count(bytes, "byte");
  return bytes < 999500 ? `${(bytes / 1e3).toPrecision(3)} kB` : `${(bytes / 1e6).toPrecision(3)} MB`;
}
function duration(seconds) {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}
var time = (milliseconds) => new Date(milliseconds).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
var roundsOf = (about) => Number(about.config["rounds"] ?? 1);
function protection(about) {
  const { protect, epsilon, delta, noise } = about.config, name = String(protect ?? "none").split("(")[0];
  if (name === "none" || noise === "seeded")
    return {
      level: "none",
      title: "No privacy guarantee",
      text: "What your phone says of the public samples is sent as it is. From it, somebody who knows how may learn something about your data, for instance which classes you have. Take part only with data that you would show."
    };
  return {
    level: "some",
    title: `Protected: epsilon ${Number(epsilon)}`,
    text: `Your phone adds noise while it learns, so that whoever sees all that leaves it in all rounds can hardly tell whether any single example of yours was there (differential privacy, epsilon ${Number(epsilon)}, delta ${Number(delta)}; less is stricter). Which classes you have is not hidden.`
  };
}
var parts = {
  "training with noise": "Learning from your data, with noise …",
  "learning what the others know": "Learning what the others know …",
  predicting: "Looking at the public samples …",
  "looking at the public images": "Getting to know the public samples …",
  "finding where the images lie": "Getting to know the public samples …",
  "comparing images": "Comparing them with yours …"
};
var words = {
  title: "fedkd",
  opening: "One moment …",
  welcome: {
    title: (about) => `Help to train “${about.name}”`,
    lead: "Your phone learns from data that stays here. Only its opinions on public samples leave.",
    does: "What your phone will do",
    doing: (about) => [
      `It trains a small model on examples that you choose, ${count(roundsOf(about), "time")} in all.`,
      `Each time it says what it thinks of ${count(about.rows, "public sample")}, which everybody has.`,
      "The server makes one better model of everybody’s opinions."
    ],
    leaves: "What leaves",
    leaving: (about, bytes) => [
      `For each public sample: how likely each of ${about.classes} classes is, and how much that counts. About ${size(bytes)} a round.`,
      "When you take part, and the address of your connection, as with any web page."
    ],
    stays: "What stays",
    staying: ["Your examples, their labels, and the model: none of them is sent."],
    asks: (host, about) => `Asked by ${host}, fedkd ${about.version}.`,
    settings: "All settings of this run",
    go: "Choose my data",
    uninvited: "To take part you need an invitation: open the link or the QR code that the server shows.",
    cannot: (line) => `This phone cannot take part: ${line}`
  },
  data: {
    title: "Choose your data",
    lead: "It stays on this phone.",
    samples: "The public samples look like this; yours should, too:",
    shard: "Demo data",
    shardText: (about) => `The server offers ${count(about.shards, "share")} of simulated private data, to try it out.`,
    shardNumber: "Share",
    shardTake: "Take this share",
    photos: "Pictures",
    photosLabel: "These pictures show",
    photosTake: "Add pictures",
    photosText: (shape) => `They are cut square and made ${shape[2]} × ${shape[1]} pixels small${shape[0] === 1 ? ", gray" : ""}.`,
    negative: "Turn into negatives where that looks more like the samples",
    remove: (label) => `Remove this picture of ${label}`,
    photosTitle: (n) => count(n, "picture"),
    file: "A file",
    fileText: "A .npz or .safetensors file with arrays x and y.",
    fileTake: "Open a file",
    chosen: "Chosen",
    chosenText: (n, title) => `${count(n, "example")}: ${title}`,
    limit: "Your limit",
    limitText: (epsilon) => `How much may leak about these examples, in all runs together (epsilon)? This run takes ${epsilon}. What you say first holds for good.`,
    limitLabel: "At most",
    few: "Choose at least two examples.",
    shardTitle: (k) => `demo share ${k}`,
    back: "Back",
    start: "Take part",
    starting: "Joining …",
    noPicture: (name) => `“${name}” is not a picture that this browser can read.`
  },
  joined: {
    title: (state2) => state2.round ? `Round ${state2.round} of ${Number(state2.about?.config["rounds"] ?? state2.round)}` : "You are in",
    doing: (state2) => {
      if (state2.paused) return "Paused. Nothing is computed or sent.";
      if (state2.hidden) return "Waiting until the page is in sight again.";
      const said = {
        connecting: "Connecting …",
        waiting: state2.log.length ? "Waiting for the next question." : "Waiting for the first question.",
        training: parts[state2.part] ?? "Learning from your data …",
        sending: "Sending the answer …",
        unreachable: "The server does not answer. Trying again; nothing is lost."
      };
      return said[state2.doing];
    },
    progress: "Progress of this round",
    answers: "Answers",
    sent: "Sent",
    last: "Last round took",
    examples: "Your examples",
    visible: "Keep this page open and in sight: browsers stop work in pages that nobody sees. You may close it at any time and come back.",
    awake: "The screen stays on while it works.",
    pause: "Pause",
    resume: "Go on",
    leave: "Leave",
    details: "What was sent so far",
    refused: (line) => `Your phone refused a question: ${line}`
  },
  done: {
    over: "Thank you!",
    left: "You have left",
    overText: (answers, bytes) => `The run is over. Your phone answered ${count(answers, "time")} and sent ${size(bytes)} in all.`,
    leftText: (answers, bytes) => `Your phone takes no further part. It answered ${count(answers, "time")} and sent ${size(bytes)}; what was sent cannot be taken back.`,
    list: "What was sent",
    nothing: "Nothing was sent.",
    round: "Round",
    time: "Time",
    bytes: "Size",
    digest: "Fingerprint",
    refusedRow: "refused",
    lost: "too late",
    kept: "What this phone keeps",
    keeps: "Your examples, the model, its key and this list, until you delete them.",
    erase: "Delete everything",
    sure: "Really delete? It cannot be undone, and what was spent on these examples is forgotten, too.",
    again: "Take part again",
    back: "Come back"
  },
  deleted: { title: "All gone", text: "Nothing of this is left on your phone. You can close the page." },
  trouble: {
    title: "That did not work",
    retry: "Try again",
    insecure: "This page needs a secure connection (https) with a certificate that your phone trusts.",
    old: "This browser is too old: it lacks what the page needs. A current Chrome, Firefox or Safari will do.",
    offline: "The server cannot be reached. Are you in its network?",
    twice: "This is open in another tab already. Close that one first, then try again.",
    storage: "The browser gives this page no storage. A private window may be the reason.",
    stranger: (line) => `The server does not let this phone in: ${line} Ask for a new invitation.`,
    broken: (line) => `Something is wrong: ${line}`
  }
};

// src/view.ts
var still = () => {
};
var shown = null;
var built = { body: [], update: still };
function render(root2, state2, extras2, actions2) {
  if (state2.screen !== shown) {
    const first = shown === null;
    shown = state2.screen;
    built = screens[state2.screen](state2, extras2, actions2);
    root2.replaceChildren(...built.body.filter((part) => part !== null));
    window.scrollTo(0, 0);
    if (!first) root2.querySelector("h1")?.focus();
  }
  built.update(state2, extras2);
}
var heading = (text) => h("h1", { tabindex: -1 }, text);
var button = (text, act, kind = "plain") => h("button", { type: "button", class: kind, onclick: act }, text);
var card = (title, ...rest) => h("section", { class: "card" }, h("h2", {}, title), ...rest);
var bar = (...buttons) => h("div", { class: "bar" }, ...buttons);
var hide = (element, hidden) => void (element.hidden = hidden);
var notice = () => h("p", { class: "notice", role: "alert" });
function tell(element, line) {
  say(element, line ?? "");
  hide(element, !line);
}
function shield(about) {
  const { level, title, text } = protection(about);
  return h("section", { class: `card shield ${level}` }, h("h2", {}, title), h("p", {}, text));
}
var screens = {
  opening: () => ({ body: [h("p", { class: "center", role: "status" }, words.opening)], update: still }),
  welcome,
  data,
  joined,
  done,
  deleted: () => ({ body: [heading(words.deleted.title), h("p", {}, words.deleted.text)], update: still }),
  trouble: (state2, _, actions2) => {
    const line = h("p", { role: "alert" }, state2.trouble ?? "");
    return {
      body: [heading(words.trouble.title), line, bar(button(words.trouble.retry, actions2.retry, "main"))],
      update: (now) => say(line, now.trouble ?? "")
    };
  }
};
function welcome(state2, extras2, actions2) {
  const about = state2.about, w = words.welcome;
  const go = button(w.go, actions2.agree, "main");
  const stop2 = extras2.cannot ? w.cannot(extras2.cannot) : state2.invited || state2.member ? null : w.uninvited;
  go.disabled = stop2 !== null;
  const settings = h(
    "dl",
    {},
    ...Object.entries(about.config).flatMap(([key, value]) => [h("dt", {}, key), h("dd", {}, String(value))])
  );
  const line = notice();
  const said = h("p", {}, w.asks(extras2.host, about));
  const leaving = list(w.leaving(about, extras2.roundBytes));
  return {
    body: [
      heading(w.title(about)),
      h("p", { class: "lead" }, w.lead),
      line,
      shield(about),
      card(w.does, list(w.doing(about))),
      card(w.leaves, leaving),
      card(w.stays, list(w.staying)),
      h("details", {}, h("summary", {}, w.settings), said, settings),
      bar(go)
    ],
    update: (now) => tell(line, now.trouble ?? stop2)
  };
}
function shards(about, actions2) {
  if (!about.shards) return null;
  const w = words.data, first = Math.floor(Math.random() * about.shards);
  const number = h("input", {
    type: "number",
    min: 0,
    max: about.shards - 1,
    value: first,
    inputmode: "numeric",
    id: "share"
  });
  const take2 = () => actions2.shard(Math.min(about.shards - 1, Math.max(0, Math.floor(Number(number.value) || 0))));
  return card(
    w.shard,
    h("p", {}, w.shardText(about)),
    h("div", { class: "row" }, h("label", { for: "share" }, w.shardNumber), number, button(w.shardTake, take2))
  );
}
function pictures(about, actions2, samples) {
  if (!canPhotograph(about.shape)) return { part: null, update: still };
  const w = words.data;
  const label = h("select", { id: "label" }, ...about.classNames.map((name, k) => h("option", { value: k }, name)));
  const negative = h("input", { type: "checkbox", id: "negative", checked: true });
  const input = h("input", { type: "file", accept: "image/*", multiple: true, class: "away", id: "pictures" });
  input.addEventListener("change", () => {
    actions2.photos([...input.files ?? []], Number(label.value), negative.checked);
    input.value = "";
  });
  const album = h("ul", { class: "album" });
  const part = card(
    w.photos,
    h("p", {}, w.photosText(about.shape)),
    samples,
    h("div", { class: "row" }, h("label", { for: "label" }, w.photosLabel), label),
    about.shape[0] === 1 && h("div", { class: "row" }, negative, h("label", { for: "negative" }, w.negative)) || null,
    h("div", { class: "row" }, input, h("label", { for: "pictures", class: "button" }, w.photosTake)),
    album
  );
  let drawn = [];
  const update = ({ photos }) => {
    if (photos === drawn) return;
    drawn = photos;
    album.replaceChildren(
      ...photos.map((photo) => {
        const name = about.classNames[photo.label] ?? String(photo.label);
        const drop = button("×", () => actions2.unphoto(photo.id), "drop");
        drop.setAttribute("aria-label", w.remove(name));
        return h(
          "li",
          {},
          picture(rgba(photo.pixels, about.shape), about.shape[2], about.shape[1], name),
          h("span", {}, name),
          drop
        );
      })
    );
  };
  return { part, update };
}
function files(actions2) {
  const w = words.data, input = h("input", { type: "file", accept: ".npz,.safetensors", class: "away", id: "file" });
  input.addEventListener("change", () => {
    const file = input.files?.[0];
    if (file) actions2.file(file);
    input.value = "";
  });
  return card(
    w.file,
    h("p", {}, w.fileText),
    h("div", { class: "row" }, input, h("label", { for: "file", class: "button" }, w.fileTake))
  );
}
function tally(about, chosen2) {
  const most = Math.max(1, ...chosen2.counts);
  return h(
    "ul",
    { class: "tally" },
    ...chosen2.counts.map(
      (n, c) => h("li", {}, h("span", {}, about.classNames[c] ?? String(c)), stripe(n / most), h("span", {}, String(n)))
    )
  );
}
function stripe(share) {
  const line = h("i", { "aria-hidden": "true" });
  line.style.width = `${100 * share}%`;
  return line;
}
function strip(about, samples) {
  const each = about.shape.reduce((product, n) => product * n, 1), shape = about.shape;
  if (!rgba(samples.subarray(0, each), shape)) return null;
  const some = Array.from(
    { length: Math.min(8, about.rows) },
    (_, k) => rgba(samples.subarray(k * each, (k + 1) * each), shape)
  );
  return h(
    "div",
    { class: "strip" },
    h("p", {}, words.data.samples),
    h("div", {}, ...some.map((one) => picture(one, shape[2], shape[1], "")))
  );
}
function data(state2, _, actions2) {
  const about = state2.about, w = words.data;
  const line = notice(), samples = h("div"), album = pictures(about, actions2, samples);
  const epsilon = Number(about.config["epsilon"]), guarded = protection(about).level === "some";
  const most = h("input", {
    type: "number",
    id: "limit",
    min: epsilon,
    step: "any",
    value: epsilon,
    inputmode: "decimal"
  });
  const limit = guarded ? card(
    w.limit,
    h("p", {}, w.limitText(epsilon)),
    h("div", { class: "row" }, h("label", { for: "limit" }, w.limitLabel), most)
  ) : null;
  const chosen2 = h("section", { class: "card chosen", "aria-live": "polite" });
  const start2 = button(
    w.start,
    () => actions2.start(guarded ? Math.max(epsilon, Number(most.value) || epsilon) : NaN),
    "main"
  );
  let told, drawn = false;
  return {
    body: [
      heading(w.title),
      h("p", { class: "lead" }, w.lead),
      line,
      chosen2,
      shards(about, actions2),
      album.part,
      files(actions2),
      limit,
      bar(button(w.back, actions2.back), start2)
    ],
    update: (now, extras2) => {
      album.update(extras2);
      if (extras2.samples && !drawn) samples.replaceChildren(strip(about, extras2.samples) ?? "");
      drawn ||= extras2.samples !== null;
      if (now.data !== told) {
        told = now.data;
        const enough = examplesOf(told) >= LEAST;
        hide(chosen2, told === null);
        if (told) window.scrollTo({ top: 0, behavior: "auto" });
        chosen2.replaceChildren(
          h("h2", {}, w.chosen),
          h("p", {}, told && enough ? w.chosenText(examplesOf(told), told.title) : w.few),
          told ? tally(about, told) : ""
        );
      }
      tell(line, now.trouble);
      say(start2, now.busy ? w.starting : w.start);
      start2.disabled = !canStart(now);
    }
  };
}
function joined(state2, _, actions2) {
  const w = words.joined, about = state2.about;
  const title = heading(w.title(state2)), status = h("p", { class: "status", role: "status" });
  const progress = h("progress", { max: 1, value: 0, "aria-label": w.progress });
  const fact = (name) => [h("dt", {}, name), h("dd", {}, "–")];
  const [answers, sent, last, own] = [fact(w.answers), fact(w.sent), fact(w.last), fact(w.examples)];
  const pause = button(w.pause, actions2.pause), resume = button(w.resume, actions2.resume, "main");
  const line = notice(), history2 = h("div"), rows = h("details", {}, h("summary", {}, w.details), history2);
  let told = null;
  return {
    body: [
      title,
      h(
        "section",
        { class: "card" },
        status,
        progress,
        h("dl", { class: "facts" }, ...answers, ...sent, ...last, ...own)
      ),
      line,
      h("p", { class: "hint" }, w.visible),
      rows,
      protection(about).level === "none" ? h("p", { class: "hint" }, protection(about).title) : null,
      bar(button(w.leave, actions2.leave, "quiet"), pause, resume)
    ],
    update: (now) => {
      const refusal = now.log.at(-1)?.refusal ?? null;
      say(title, w.title(now));
      say(status, w.doing(now));
      tell(line, now.trouble ?? (refusal === null ? null : w.refused(refusal)));
      if (now.doing === "training" && !now.paused) progress.value = now.progress;
      else if (now.doing === "sending" && !now.paused) progress.value = 1;
      else progress.value = 0;
      const answered = now.log.filter((one) => one.delivered && one.refusal === null), latest = answered.at(-1);
      say(answers[1], String(answered.length));
      say(sent[1], size(now.log.reduce((sum, one) => sum + one.bytes, 0)));
      say(last[1], latest ? duration(latest.seconds) : "–");
      say(own[1], examplesOf(now.data).toLocaleString("en"));
      hide(pause, now.paused);
      hide(resume, !now.paused);
      hide(rows, !now.log.length);
      if (now.log !== told) history2.replaceChildren(table(told = now.log));
    }
  };
}
function table(log) {
  const w = words.done;
  if (!log.length) return h("p", {}, w.nothing);
  const row = (one) => {
    const what = one.refusal !== null ? w.refusedRow : one.delivered ? one.digest : w.lost;
    return h(
      "tr",
      {},
      h("td", {}, String(one.round || "–")),
      h("td", {}, time(one.at)),
      h("td", {}, size(one.frame)),
      h("td", { class: "code" }, what)
    );
  };
  const names2 = [w.round, w.time, w.bytes, w.digest].map((name) => h("th", { scope: "col" }, name));
  return h("table", {}, h("thead", {}, h("tr", {}, ...names2)), h("tbody", {}, ...log.map(row)));
}
function done(state2, _, actions2) {
  const w = words.done, answered = state2.log.filter((one) => one.delivered && one.refusal === null);
  const bytes = state2.log.reduce((sum, one) => sum + one.bytes, 0), over = state2.why === "over";
  const warning = h("p", { class: "notice", role: "alert", hidden: true }, w.sure);
  const again = button(over ? w.again : w.back, actions2.again, over ? "plain" : "main");
  const erase2 = button(
    w.erase,
    () => {
      if (!warning.hidden) actions2.erase();
      hide(warning, false);
    },
    "danger wide"
  );
  return {
    body: [
      heading(over ? w.over : w.left),
      h("p", { class: "lead" }, (over ? w.overText : w.leftText)(answered.length, bytes)),
      card(w.list, table(state2.log)),
      card(w.kept, h("p", {}, w.keeps), warning, erase2),
      bar(again)
    ],
    update: still
  };
}

// src/app.ts
var root = document.getElementById("page");
var state = START;
var extras = { photos: [], samples: null, roundBytes: 0, cannot: null, host: location.host };
var store;
var node = null;
var worker = null;
var screenLock = null;
var woken = [];
function dispatch(event) {
  state = next(state, event);
  render(root, state, extras, actions);
  if (mayWork(state)) {
    woken.forEach((go) => go());
    woken = [];
  }
  void stayAwake();
}
function show(more) {
  extras = { ...extras, ...more };
  render(root, state, extras, actions);
}
var actions = {
  agree: () => {
    dispatch({ kind: "agreed" });
    void loadTransfer(state.about).catch(complain);
  },
  back: () => dispatch({ kind: "back" }),
  shard: (k) => attempt(async () => take(await fetchShard(state.about, k))),
  photos: (files2, label, negative) => attempt(() => addPhotos(files2, label, negative)),
  unphoto: (id) => attempt(() => keepPhotos(extras.photos.filter((photo) => photo.id !== id))),
  file: (file) => attempt(async () => take(await readFile(file, state.about))),
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
  again: () => attempt(async () => {
    await store.put({ why: void 0 });
    dispatch({ kind: "again" });
  }),
  erase: () => attempt(erase),
  retry: () => location.reload()
};
function attempt(what) {
  if (state.busy) return;
  dispatch({ kind: "busy", is: true });
  what().catch(complain).finally(() => state.busy && dispatch({ kind: "busy", is: false }));
}
function complain(error) {
  const line = error instanceof Error ? error.message : String(error);
  const said = error instanceof Unreachable2 ? words.trouble.offline : error instanceof Refused2 ? words.trouble.stranger(line) : error instanceof FileError2 || error instanceof TransferError ? line : words.trouble.broken(line);
  dispatch({ kind: "notice", line: said });
}
var counts = (y, classes) => Array.from({ length: classes }, (_, c) => y.filter((label) => label === c).length);
function chosen(data2, about) {
  const title = data2.kind === "shard" ? words.data.shardTitle(data2.title) : data2.kind === "photos" ? words.data.photosTitle(data2.y.length) : data2.title;
  return { kind: data2.kind, title, counts: counts(data2.y, about.classes) };
}
async function take(data2) {
  await store.put({ data: data2 });
  dispatch({ kind: "chosen", data: chosen(data2, state.about) });
}
async function addPhotos(files2, label, negative) {
  const about = state.about, added = [];
  for (const file of files2) {
    const pixels = await readPhoto(file, about.shape).catch(() => {
      throw new FileError2(words.data.noPicture(file.name));
    });
    const turned = negative && extras.samples !== null && wantsNegative(pixels, extras.samples);
    added.push({ id: crypto.randomUUID(), label, pixels: turned ? inverted(pixels) : pixels });
  }
  await keepPhotos([...extras.photos, ...added]);
}
async function keepPhotos(photos) {
  await store.put({ photos });
  show({ photos });
  if (photos.length) return take(asData(photos, state.about.shape, ""));
  await store.put({ data: void 0 });
  dispatch({ kind: "chosen", data: null });
}
async function loadTransfer(about) {
  const kept = await store.get("transfer");
  const transfer = kept?.fingerprint === about.fingerprint ? kept : await fetchTransfer(about);
  if (transfer !== kept) await store.put({ transfer });
  show({ samples: transfer.x });
}
async function start(limit) {
  const about = state.about;
  await store.put({ limit: Number.isNaN(limit) ? void 0 : limit });
  await loadTransfer(about);
  if (!state.member) await enter();
  await store.put({ agreed: about, run: void 0, complete: void 0, why: void 0 });
  void navigator.storage?.persist?.();
  dispatch({ kind: "joined" });
  void work();
}
async function enter() {
  let key = await store.get("key");
  if (!key) await store.put({ key: key = await newKey(), device: crypto.randomUUID() });
  const code = await store.get("code");
  if (!code) throw new Refused2(403, null, words.welcome.uninvited);
  const { authority } = state.about;
  const id = await register({ code, key, name: `phone-${crypto.randomUUID().slice(0, 4)}`, authority });
  await store.put({ id, code: void 0 });
}
async function work() {
  stop();
  const [key, id, agreed, device] = await Promise.all([
    store.get("key"),
    store.get("id"),
    store.get("agreed"),
    store.get("device")
  ]);
  if (!key || !id || !agreed || !device) return dispatch({ kind: "trouble", line: words.trouble.storage });
  const mine = new Node({
    fleet: new Fleet(key, BigInt(id), device),
    store,
    agreed: agreed.config,
    answer: compute,
    roundOf,
    wait: surroundings.wait,
    digest: sha2562,
    tell: (what) => mine === node && happened(what),
    ready: async () => {
      while (node === mine && !mayWork(state)) await new Promise((go) => woken.push(go));
    }
  });
  node = mine;
  await mine.live();
}
function stop() {
  node?.stop();
  worker?.terminate();
  node = worker = null;
}
function happened(what) {
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
async function reenter(line) {
  stop();
  if (!await store.get("code")) return dispatch({ kind: "trouble", line: words.trouble.stranger(line) });
  await enter();
  void work();
}
async function end(why) {
  stop();
  await store.put({ why });
  dispatch({ kind: "ended", why });
}
async function erase() {
  stop();
  for (const name of await store.names("budget.")) indexedDB.deleteDatabase(`fedkd-ledger-${name.slice(7, 39)}`);
  await store.clear();
  for (const name of await caches.keys()) await caches.delete(name);
  for (const one of await navigator.serviceWorker?.getRegistrations() ?? []) await one.unregister();
  dispatch({ kind: "deleted" });
}
function compute(job) {
  const mine = worker ??= new Worker("worker.js", { type: "module" });
  return new Promise((resolve) => {
    mine.onmessage = ({ data: data2 }) => "share" in data2 ? dispatch({ kind: "progress", ...data2 }) : resolve(data2);
    mine.onerror = () => {
      mine.terminate();
      if (worker === mine) worker = null;
      resolve({ refusal: "the computation broke off on this phone" });
    };
    mine.postMessage(job);
  });
}
async function stayAwake() {
  const wanted = mayWork(state);
  if (!wanted) await screenLock?.release().catch(() => {
  });
  if (!wanted || screenLock && !screenLock.released || !("wakeLock" in navigator)) return;
  screenLock = await navigator.wakeLock.request("screen").catch(() => null);
}
async function askAbout() {
  try {
    const response = await fetch("/fedkd/about.json", {
      cache: "no-store",
      credentials: "omit",
      signal: AbortSignal.timeout(15e3)
    });
    if (!response.ok) throw new Unreachable2(String(response.status));
    const about = readAbout(await response.json());
    await store.put({ about });
    return about;
  } catch (error) {
    const kept = await store.get("about");
    if (error instanceof AboutError || !kept) throw error;
    return kept;
  }
}
var alone = () => new Promise((resolve) => {
  const held = new Promise(() => {
  });
  navigator.locks.request("fedkd", { ifAvailable: true }, (lock) => {
    resolve(lock !== null);
    return lock === null ? void 0 : held;
  }).catch(() => resolve(false));
});
function unfit() {
  if (!isSecureContext || !crypto.subtle) return words.trouble.insecure;
  const has = "locks" in navigator && "indexedDB" in window && "Worker" in window && "OffscreenCanvas" in window && "findLast" in Array.prototype;
  return has ? null : words.trouble.old;
}
async function open() {
  render(root, state, extras, actions);
  const line = unfit();
  if (line) return dispatch({ kind: "trouble", line });
  if (!await alone()) return dispatch({ kind: "trouble", line: words.trouble.twice });
  try {
    store = await openStore();
  } catch {
    return dispatch({ kind: "trouble", line: words.trouble.storage });
  }
  const code = new URLSearchParams(location.hash.slice(1)).get("code");
  if (code) await store.put({ code });
  history.replaceState(null, "", location.pathname);
  let about;
  try {
    about = await askAbout();
  } catch (error) {
    const said = error instanceof AboutError ? words.trouble.broken(error.message) : words.trouble.offline;
    return dispatch({ kind: "trouble", line: said });
  }
  await restore(about);
  void navigator.serviceWorker?.register("sw.js").catch(() => {
  });
}
async function restore(about) {
  const [agreed, data2, photos, id, why, invited] = await Promise.all([
    store.get("agreed"),
    store.get("data"),
    store.get("photos"),
    store.get("id"),
    store.get("why"),
    store.get("code")
  ]);
  const fits = data2 && data2.shape.join() === about.shape.join() && data2.y.every((label) => label < about.classes) ? data2 : null;
  const log = await Promise.all((await store.names("sent.")).map((name) => store.get(name)));
  extras = { ...extras, photos: fits && photos ? photos : [], roundBytes: weigh(about), cannot: cannotAnswer(about) };
  dispatch({
    kind: "opened",
    about,
    invited: invited !== void 0,
    member: id !== void 0,
    agreed: agreed !== void 0 && sameRun(agreed, about),
    data: fits && chosen(fits, about),
    log: log.filter((one) => one !== void 0),
    why: why ?? null
  });
  if (state.screen === "joined") void work();
}
document.addEventListener(
  "visibilitychange",
  () => dispatch({ kind: "visible", is: document.visibilityState === "visible" })
);
void open();
