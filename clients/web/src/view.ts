/** From state to screen. A screen is built when it comes, and then only changed where the state did. */
import { type About } from "./about.js";
import { h, list, picture, say } from "./dom.js";
import { type Photo, canPhotograph, rgba } from "./photos.js";
import { type Chosen, type Screen, type State, LEAST, canStart, examplesOf } from "./screens.js";
import { type Sent } from "./node.js";
import { duration, protection, size, time, words } from "./words.js";

/** What a touch asks for; app.ts does it. */
export interface Actions {
  readonly agree: () => void;
  readonly back: () => void;
  readonly shard: (k: number) => void;
  readonly photos: (files: readonly File[], label: number, negative: boolean) => void;
  readonly unphoto: (id: string) => void;
  readonly file: (file: File) => void;
  /** `limit` is the most that may be spent on these examples (epsilon); NaN where nothing is promised. */
  readonly start: (limit: number) => void;
  readonly pause: () => void;
  readonly resume: () => void;
  readonly leave: () => void;
  readonly again: () => void;
  readonly erase: () => void;
  readonly retry: () => void;
}

/** What is shown and not part of the state: pictures, and what a round will weigh. */
export interface Extras {
  readonly photos: readonly Photo[];
  readonly samples: Float32Array | null;
  readonly roundBytes: number;
  /** Why a phone cannot take part in this run, if it cannot. */
  readonly cannot: string | null;
  readonly host: string;
}

interface Built {
  readonly body: readonly (HTMLElement | null)[];
  readonly update: (state: State, extras: Extras) => void;
}

const still = (): void => {};
let shown: Screen | null = null;
let built: Built = { body: [], update: still };

export function render(root: HTMLElement, state: State, extras: Extras, actions: Actions): void {
  if (state.screen !== shown) {
    const first = shown === null;
    shown = state.screen;
    built = screens[state.screen](state, extras, actions);
    root.replaceChildren(...built.body.filter((part) => part !== null));
    window.scrollTo(0, 0);
    if (!first) root.querySelector("h1")?.focus();
  }
  built.update(state, extras);
}

const heading = (text: string): HTMLElement => h("h1", { tabindex: -1 }, text);
const button = (text: string, act: () => void, kind = "plain"): HTMLButtonElement =>
  h("button", { type: "button", class: kind, onclick: act }, text);
const card = (title: string, ...rest: readonly (Node | null)[]): HTMLElement =>
  h("section", { class: "card" }, h("h2", {}, title), ...rest);
const bar = (...buttons: readonly HTMLElement[]): HTMLElement => h("div", { class: "bar" }, ...buttons);
const hide = (element: HTMLElement, hidden: boolean): void => void (element.hidden = hidden);
const notice = (): HTMLElement => h("p", { class: "notice", role: "alert" });

function tell(element: HTMLElement, line: string | null): void {
  say(element, line ?? "");
  hide(element, !line);
}

function shield(about: About): HTMLElement {
  const { level, title, text } = protection(about);
  return h("section", { class: `card shield ${level}` }, h("h2", {}, title), h("p", {}, text));
}

const screens: Readonly<Record<Screen, (state: State, extras: Extras, actions: Actions) => Built>> = {
  opening: () => ({ body: [h("p", { class: "center", role: "status" }, words.opening)], update: still }),
  welcome,
  data,
  joined,
  done,
  deleted: () => ({ body: [heading(words.deleted.title), h("p", {}, words.deleted.text)], update: still }),
  trouble: (state, _, actions) => {
    const line = h("p", { role: "alert" }, state.trouble ?? "");
    return {
      body: [heading(words.trouble.title), line, bar(button(words.trouble.retry, actions.retry, "main"))],
      update: (now) => say(line, now.trouble ?? ""),
    };
  },
};

function welcome(state: State, extras: Extras, actions: Actions): Built {
  const about = state.about!,
    w = words.welcome;
  const go = button(w.go, actions.agree, "main");
  const stop = extras.cannot ? w.cannot(extras.cannot) : state.invited || state.member ? null : w.uninvited;
  go.disabled = stop !== null;
  const settings = h(
    "dl",
    {},
    ...Object.entries(about.config).flatMap(([key, value]) => [h("dt", {}, key), h("dd", {}, String(value))]),
  );
  const line = notice();
  const said = h("p", {}, w.asks(extras.host, about));
  const leaving = list(w.leaving(about, extras.roundBytes));
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
      bar(go),
    ],
    update: (now) => tell(line, now.trouble ?? stop),
  };
}

function shards(about: About, actions: Actions): HTMLElement | null {
  if (!about.shards) return null;
  const w = words.data,
    first = Math.floor(Math.random() * about.shards);
  const number = h("input", {
    type: "number",
    min: 0,
    max: about.shards - 1,
    value: first,
    inputmode: "numeric",
    id: "share",
  });
  const take = (): void =>
    actions.shard(Math.min(about.shards - 1, Math.max(0, Math.floor(Number(number.value) || 0))));
  return card(
    w.shard,
    h("p", {}, w.shardText(about)),
    h("div", { class: "row" }, h("label", { for: "share" }, w.shardNumber), number, button(w.shardTake, take)),
  );
}

function pictures(
  about: About,
  actions: Actions,
  samples: HTMLElement,
): { readonly part: HTMLElement | null; readonly update: (extras: Extras) => void } {
  if (!canPhotograph(about.shape)) return { part: null, update: still };
  const w = words.data;
  const label = h("select", { id: "label" }, ...about.classNames.map((name, k) => h("option", { value: k }, name)));
  const negative = h("input", { type: "checkbox", id: "negative", checked: true });
  const input = h("input", { type: "file", accept: "image/*", multiple: true, class: "away", id: "pictures" });
  input.addEventListener("change", () => {
    actions.photos([...(input.files ?? [])], Number(label.value), negative.checked);
    input.value = "";
  });
  const album = h("ul", { class: "album" });
  const part = card(
    w.photos,
    h("p", {}, w.photosText(about.shape)),
    samples,
    h("div", { class: "row" }, h("label", { for: "label" }, w.photosLabel), label),
    (about.shape[0] === 1 && h("div", { class: "row" }, negative, h("label", { for: "negative" }, w.negative))) || null,
    h("div", { class: "row" }, input, h("label", { for: "pictures", class: "button" }, w.photosTake)),
    album,
  );
  let drawn: readonly Photo[] = [];
  const update = ({ photos }: Extras): void => {
    if (photos === drawn) return;
    drawn = photos;
    album.replaceChildren(
      ...photos.map((photo) => {
        const name = about.classNames[photo.label] ?? String(photo.label);
        const drop = button("×", () => actions.unphoto(photo.id), "drop");
        drop.setAttribute("aria-label", w.remove(name));
        return h(
          "li",
          {},
          picture(rgba(photo.pixels, about.shape)!, about.shape[2]!, about.shape[1]!, name),
          h("span", {}, name),
          drop,
        );
      }),
    );
  };
  return { part, update };
}

function files(actions: Actions): HTMLElement {
  const w = words.data,
    input = h("input", { type: "file", accept: ".npz,.safetensors", class: "away", id: "file" });
  input.addEventListener("change", () => {
    const file = input.files?.[0];
    if (file) actions.file(file);
    input.value = "";
  });
  return card(
    w.file,
    h("p", {}, w.fileText),
    h("div", { class: "row" }, input, h("label", { for: "file", class: "button" }, w.fileTake)),
  );
}

/** Bars that say how many examples of each class there are. */
function tally(about: About, chosen: Chosen): HTMLElement {
  const most = Math.max(1, ...chosen.counts);
  return h(
    "ul",
    { class: "tally" },
    ...chosen.counts.map((n, c) =>
      h("li", {}, h("span", {}, about.classNames[c] ?? String(c)), stripe(n / most), h("span", {}, String(n))),
    ),
  );
}

function stripe(share: number): HTMLElement {
  const line = h("i", { "aria-hidden": "true" });
  line.style.width = `${100 * share}%`;
  return line;
}

function strip(about: About, samples: Float32Array): HTMLElement | null {
  const each = about.shape.reduce((product, n) => product * n, 1),
    shape = about.shape;
  if (!rgba(samples.subarray(0, each), shape)) return null;
  const some = Array.from({ length: Math.min(8, about.rows) }, (_, k) =>
    rgba(samples.subarray(k * each, (k + 1) * each), shape)!,
  );
  return h(
    "div",
    { class: "strip" },
    h("p", {}, words.data.samples),
    h("div", {}, ...some.map((one) => picture(one, shape[2]!, shape[1]!, ""))),
  );
}

function data(state: State, _: Extras, actions: Actions): Built {
  const about = state.about!,
    w = words.data;
  const line = notice(),
    samples = h("div"),
    album = pictures(about, actions, samples);
  const epsilon = Number(about.config["epsilon"]),
    guarded = protection(about).level === "some";
  const most = h("input", {
    type: "number",
    id: "limit",
    min: epsilon,
    step: "any",
    value: epsilon,
    inputmode: "decimal",
  });
  const limit = guarded
    ? card(
        w.limit,
        h("p", {}, w.limitText(epsilon)),
        h("div", { class: "row" }, h("label", { for: "limit" }, w.limitLabel), most),
      )
    : null;
  const chosen = h("section", { class: "card chosen", "aria-live": "polite" });
  const start = button(
    w.start,
    () => actions.start(guarded ? Math.max(epsilon, Number(most.value) || epsilon) : NaN),
    "main",
  );
  let told: Chosen | null | undefined,
    drawn = false;
  return {
    body: [
      heading(w.title),
      h("p", { class: "lead" }, w.lead),
      line,
      chosen,
      shards(about, actions),
      album.part,
      files(actions),
      limit,
      bar(button(w.back, actions.back), start),
    ],
    update: (now, extras) => {
      album.update(extras);
      if (extras.samples && !drawn) samples.replaceChildren(strip(about, extras.samples) ?? "");
      drawn ||= extras.samples !== null;
      if (now.data !== told) {
        told = now.data;
        const enough = examplesOf(told) >= LEAST;
        hide(chosen, told === null);
        if (told) window.scrollTo({ top: 0, behavior: "auto" });
        chosen.replaceChildren(
          h("h2", {}, w.chosen),
          h("p", {}, told && enough ? w.chosenText(examplesOf(told), told.title) : w.few),
          told ? tally(about, told) : "",
        );
      }
      tell(line, now.trouble);
      say(start, now.busy ? w.starting : w.start);
      start.disabled = !canStart(now);
    },
  };
}

function joined(state: State, _: Extras, actions: Actions): Built {
  const w = words.joined,
    about = state.about!;
  const title = heading(w.title(state)),
    status = h("p", { class: "status", role: "status" });
  const progress = h("progress", { max: 1, value: 0, "aria-label": w.progress });
  const fact = (name: string): [HTMLElement, HTMLElement] => [h("dt", {}, name), h("dd", {}, "–")];
  const [answers, sent, last, own] = [fact(w.answers), fact(w.sent), fact(w.last), fact(w.examples)];
  const pause = button(w.pause, actions.pause),
    resume = button(w.resume, actions.resume, "main");
  const line = notice(),
    history = h("div"),
    rows = h("details", {}, h("summary", {}, w.details), history);
  let told: readonly Sent[] | null = null;
  return {
    body: [
      title,
      h(
        "section",
        { class: "card" },
        status,
        progress,
        h("dl", { class: "facts" }, ...answers, ...sent, ...last, ...own),
      ),
      line,
      h("p", { class: "hint" }, w.visible),
      rows,
      protection(about).level === "none" ? h("p", { class: "hint" }, protection(about).title) : null,
      bar(button(w.leave, actions.leave, "quiet"), pause, resume),
    ],
    update: (now) => {
      const refusal = now.log.at(-1)?.refusal ?? null;
      say(title, w.title(now));
      say(status, w.doing(now));
      tell(line, now.trouble ?? (refusal === null ? null : w.refused(refusal)));
      if (now.doing === "training" && !now.paused) progress.value = now.progress;
      else if (now.doing === "sending" && !now.paused) progress.value = 1;
      else progress.value = 0;
      const answered = now.log.filter((one) => one.delivered && one.refusal === null),
        latest = answered.at(-1);
      say(answers[1], String(answered.length));
      say(sent[1], size(now.log.reduce((sum, one) => sum + one.bytes, 0)));
      say(last[1], latest ? duration(latest.seconds) : "–");
      say(own[1], examplesOf(now.data).toLocaleString("en"));
      hide(pause, now.paused);
      hide(resume, !now.paused);
      hide(rows, !now.log.length);
      if (now.log !== told) history.replaceChildren(table((told = now.log)));
    },
  };
}

function table(log: readonly Sent[]): HTMLElement {
  const w = words.done;
  if (!log.length) return h("p", {}, w.nothing);
  const row = (one: Sent): HTMLElement => {
    const what = one.refusal !== null ? w.refusedRow : one.delivered ? one.digest : w.lost;
    return h(
      "tr",
      {},
      h("td", {}, String(one.round || "–")),
      h("td", {}, time(one.at)),
      h("td", {}, size(one.frame)),
      h("td", { class: "code" }, what),
    );
  };
  const names = [w.round, w.time, w.bytes, w.digest].map((name) => h("th", { scope: "col" }, name));
  return h("table", {}, h("thead", {}, h("tr", {}, ...names)), h("tbody", {}, ...log.map(row)));
}

function done(state: State, _: Extras, actions: Actions): Built {
  const w = words.done,
    answered = state.log.filter((one) => one.delivered && one.refusal === null);
  const bytes = state.log.reduce((sum, one) => sum + one.bytes, 0),
    over = state.why === "over";
  const warning = h("p", { class: "notice", role: "alert", hidden: true }, w.sure);
  const again = button(over ? w.again : w.back, actions.again, over ? "plain" : "main");
  const erase = button(
    w.erase,
    () => {
      if (!warning.hidden) actions.erase();
      hide(warning, false);
    },
    "danger wide",
  );
  return {
    body: [
      heading(over ? w.over : w.left),
      h("p", { class: "lead" }, (over ? w.overText : w.leftText)(answered.length, bytes)),
      card(w.list, table(state.log)),
      card(w.kept, h("p", {}, w.keeps), warning, erase),
      bar(again),
    ],
    update: still,
  };
}
