/** What the page shows and does: one pure function from state and event to state. Nothing here knows of a browser. */
import { type About } from "./about.js";
import { type Sent } from "./node.js";

export type Screen = "opening" | "trouble" | "welcome" | "data" | "joined" | "done" | "deleted";

/** What the node is at; `unreachable` says that the line is broken and it will try again. */
export type Doing = "connecting" | "waiting" | "training" | "sending" | "unreachable";

/** What is known of the private data: never the data itself. */
export interface Chosen {
  readonly kind: "shard" | "photos" | "file";
  readonly title: string;
  /** Examples of each class. */
  readonly counts: readonly number[];
}

export interface State {
  readonly screen: Screen;
  readonly about: About | null;
  /** What stands in the way, in words for people; on other screens than `trouble` it is a notice. */
  readonly trouble: string | null;
  readonly invited: boolean;
  /** The phone has a number at the server. */
  readonly member: boolean;
  readonly data: Chosen | null;
  /** Something is under way that a second touch must not start again. */
  readonly busy: boolean;
  readonly doing: Doing;
  readonly round: number;
  /** Share of the training that is done, in [0, 1], and what it is at. */
  readonly progress: number;
  readonly part: string;
  readonly paused: boolean;
  readonly hidden: boolean;
  readonly log: readonly Sent[];
  readonly why: "over" | "left" | null;
}

export type Event =
  | {
      readonly kind: "opened";
      readonly about: About;
      readonly invited: boolean;
      readonly member: boolean;
      readonly agreed: boolean;
      readonly data: Chosen | null;
      readonly log: readonly Sent[];
      readonly why: "over" | "left" | null;
    }
  | { readonly kind: "trouble"; readonly line: string }
  | { readonly kind: "notice"; readonly line: string | null }
  | { readonly kind: "agreed" }
  | { readonly kind: "back" }
  | { readonly kind: "busy"; readonly is: boolean }
  | { readonly kind: "chosen"; readonly data: Chosen | null }
  | { readonly kind: "joined" }
  | { readonly kind: "doing"; readonly doing: Doing; readonly round?: number; readonly line?: string }
  | { readonly kind: "progress"; readonly share: number; readonly part: string }
  | { readonly kind: "sent"; readonly sent: Sent }
  | { readonly kind: "visible"; readonly is: boolean }
  | { readonly kind: "pause" }
  | { readonly kind: "resume" }
  | { readonly kind: "ended"; readonly why: "over" | "left" }
  | { readonly kind: "again" }
  | { readonly kind: "deleted" };

export const START: State = {
  screen: "opening",
  about: null,
  trouble: null,
  invited: false,
  member: false,
  data: null,
  busy: false,
  doing: "connecting",
  round: 0,
  progress: 0,
  part: "",
  paused: false,
  hidden: false,
  log: [],
  why: null,
};

/** Fewer examples than this teach a model nothing. */
export const LEAST = 2;

export const examplesOf = (data: Chosen | null): number => data?.counts.reduce((sum, n) => sum + n, 0) ?? 0;

export const canStart = (state: State): boolean =>
  state.screen === "data" && !state.busy && examplesOf(state.data) >= LEAST && (state.member || state.invited);

/** Whether the node may compute and talk now. */
export const mayWork = (state: State): boolean => state.screen === "joined" && !state.paused && !state.hidden;

export function next(state: State, event: Event): State {
  switch (event.kind) {
    case "opened":
      return opened(state, event);
    case "trouble":
      return { ...state, screen: "trouble", trouble: event.line, busy: false };
    case "notice":
      return { ...state, trouble: event.line, busy: false };
    case "agreed":
      return state.screen === "welcome" ? { ...state, screen: "data", trouble: null } : state;
    case "back":
      return state.screen === "data" ? { ...state, screen: "welcome", trouble: null } : state;
    case "busy":
      return { ...state, busy: event.is };
    case "chosen":
      return { ...state, data: event.data, trouble: null, busy: false };
    case "joined":
      return {
        ...state,
        screen: "joined",
        member: true,
        busy: false,
        trouble: null,
        doing: "connecting",
        paused: false,
        why: null,
      };
    case "doing":
      return working(state, event);
    case "progress":
      return state.doing === "training"
        ? { ...state, progress: Math.min(1, Math.max(0, event.share)), part: event.part }
        : state;
    case "sent":
      return { ...state, log: [...state.log, event.sent], trouble: null, progress: 0, part: "" };
    case "visible":
      return { ...state, hidden: !event.is };
    case "pause":
      return state.screen === "joined" ? { ...state, paused: true, progress: 0 } : state;
    case "resume":
      return state.screen === "joined" ? { ...state, paused: false, doing: "connecting", trouble: null } : state;
    case "ended":
      return { ...state, screen: "done", why: event.why, paused: false, progress: 0, part: "", trouble: null };
    case "again":
      return state.screen === "done" ? { ...state, screen: "welcome", why: null } : state;
    case "deleted":
      return { ...START, screen: "deleted", about: state.about };
  }
}

function opened(state: State, event: Extract<Event, { kind: "opened" }>): State {
  const { about, invited, member, agreed, data, log, why } = event;
  const fits = data !== null && data.counts.length === about.classes ? data : null;
  const known = { ...state, about, invited, member, data: fits, log, why, trouble: null };
  // Who was in the middle of a run goes on with it; whatever changed has to be agreed to anew.
  if (member && agreed && why !== null) return { ...known, screen: "done" };
  if (member && agreed && examplesOf(fits) >= LEAST) return { ...known, screen: "joined", doing: "connecting" };
  return { ...known, screen: "welcome", why: null };
}

function working(state: State, event: Extract<Event, { kind: "doing" }>): State {
  if (state.screen !== "joined") return state;
  const fresh = event.doing === "training" ? { progress: 0, part: "" } : {};
  return { ...state, ...fresh, doing: event.doing, round: event.round ?? state.round, trouble: event.line ?? null };
}
