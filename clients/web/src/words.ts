/** Every word that the page says, in one place: plain, short, and no more certain than we are. */
import { type About } from "./about.js";
import { type Doing, type State } from "./screens.js";

export const count = (n: number, one: string, many = `${one}s`): string =>
  `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

export function size(bytes: number): string {
  if (bytes < 1000) return count(bytes, "byte");
  return bytes < 999_500 ? `${(bytes / 1000).toPrecision(3)} kB` : `${(bytes / 1e6).toPrecision(3)} MB`;
}

export function duration(seconds: number): string {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

export const time = (milliseconds: number): string =>
  new Date(milliseconds).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

const roundsOf = (about: About): number => Number(about.config["rounds"] ?? 1);

/** What the settings of a run mean for the one whose data this is: how bad (for the color), and what to say. */
export function protection(about: About): {
  readonly level: "none" | "some";
  readonly title: string;
  readonly text: string;
} {
  const { protect, epsilon, delta, noise } = about.config,
    name = String(protect ?? "none").split("(")[0];
  if (name === "none" || noise === "seeded")
    return {
      level: "none",
      title: "No privacy guarantee",
      text:
        "What your phone says of the public samples is sent as it is. From it, somebody who knows how may learn " +
        "something about your data, for instance which classes you have. Take part only with data that you would show.",
    };
  return {
    level: "some",
    title: `Protected: epsilon ${Number(epsilon)}`,
    text:
      `Your phone adds noise while it learns, so that whoever sees all that leaves it in all rounds can hardly tell ` +
      `whether any single example of yours was there (differential privacy, epsilon ${Number(epsilon)}, ` +
      `delta ${Number(delta)}; less is stricter). Which classes you have is not hidden.`,
  };
}

/** What the learner calls its steps, as people would. */
const parts: Readonly<Record<string, string>> = {
  "training with noise": "Learning from your data, with noise …",
  "learning what the others know": "Learning what the others know …",
  predicting: "Looking at the public samples …",
  "looking at the public images": "Getting to know the public samples …",
  "finding where the images lie": "Getting to know the public samples …",
  "comparing images": "Comparing them with yours …",
};

export const words = {
  title: "fedkd",
  opening: "One moment …",
  welcome: {
    title: (about: About) => `Help to train “${about.name}”`,
    lead: "Your phone learns from data that stays here. Only its opinions on public samples leave.",
    does: "What your phone will do",
    doing: (about: About) => [
      `It trains a small model on examples that you choose, ${count(roundsOf(about), "time")} in all.`,
      `Each time it says what it thinks of ${count(about.rows, "public sample")}, which everybody has.`,
      "The server makes one better model of everybody’s opinions.",
    ],
    leaves: "What leaves",
    leaving: (about: About, bytes: number) => [
      `For each public sample: how likely each of ${about.classes} classes is, and how much that counts. ` +
        `About ${size(bytes)} a round.`,
      "When you take part, and the address of your connection, as with any web page.",
    ],
    stays: "What stays",
    staying: ["Your examples, their labels, and the model: none of them is sent."],
    asks: (host: string, about: About) => `Asked by ${host}, fedkd ${about.version}.`,
    settings: "All settings of this run",
    go: "Choose my data",
    uninvited: "To take part you need an invitation: open the link or the QR code that the server shows.",
    cannot: (line: string) => `This phone cannot take part: ${line}`,
  },
  data: {
    title: "Choose your data",
    lead: "It stays on this phone.",
    samples: "The public samples look like this; yours should, too:",
    shard: "Demo data",
    shardText: (about: About) =>
      `The server offers ${count(about.shards, "share")} of simulated private data, to try it out.`,
    shardNumber: "Share",
    shardTake: "Take this share",
    photos: "Pictures",
    photosLabel: "These pictures show",
    photosTake: "Add pictures",
    photosText: (shape: readonly number[]) =>
      `They are cut square and made ${shape[2]} × ${shape[1]} pixels small${shape[0] === 1 ? ", gray" : ""}.`,
    negative: "Turn into negatives where that looks more like the samples",
    remove: (label: string) => `Remove this picture of ${label}`,
    photosTitle: (n: number) => count(n, "picture"),
    file: "A file",
    fileText: "A .npz or .safetensors file with arrays x and y.",
    fileTake: "Open a file",
    chosen: "Chosen",
    chosenText: (n: number, title: string) => `${count(n, "example")}: ${title}`,
    limit: "Your limit",
    limitText: (epsilon: number) =>
      `How much may leak about these examples, in all runs together (epsilon)? This run takes ${epsilon}. ` +
      "What you say first holds for good.",
    limitLabel: "At most",
    few: "Choose at least two examples.",
    shardTitle: (k: string) => `demo share ${k}`,
    back: "Back",
    start: "Take part",
    starting: "Joining …",
    noPicture: (name: string) => `“${name}” is not a picture that this browser can read.`,
  },
  joined: {
    title: (state: State) =>
      state.round ? `Round ${state.round} of ${Number(state.about?.config["rounds"] ?? state.round)}` : "You are in",
    doing: (state: State): string => {
      if (state.paused) return "Paused. Nothing is computed or sent.";
      if (state.hidden) return "Waiting until the page is in sight again.";
      const said: Record<Doing, string> = {
        connecting: "Connecting …",
        waiting: state.log.length ? "Waiting for the next question." : "Waiting for the first question.",
        training: parts[state.part] ?? "Learning from your data …",
        sending: "Sending the answer …",
        unreachable: "The server does not answer. Trying again; nothing is lost.",
      };
      return said[state.doing];
    },
    progress: "Progress of this round",
    answers: "Answers",
    sent: "Sent",
    last: "Last round took",
    examples: "Your examples",
    visible:
      "Keep this page open and in sight: browsers stop work in pages that nobody sees. " +
      "You may close it at any time and come back.",
    awake: "The screen stays on while it works.",
    pause: "Pause",
    resume: "Go on",
    leave: "Leave",
    details: "What was sent so far",
    refused: (line: string) => `Your phone refused a question: ${line}`,
  },
  done: {
    over: "Thank you!",
    left: "You have left",
    overText: (answers: number, bytes: number) =>
      `The run is over. Your phone answered ${count(answers, "time")} and sent ${size(bytes)} in all.`,
    leftText: (answers: number, bytes: number) =>
      `Your phone takes no further part. It answered ${count(answers, "time")} and sent ${size(bytes)}; ` +
      "what was sent cannot be taken back.",
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
    back: "Come back",
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
    stranger: (line: string) => `The server does not let this phone in: ${line} Ask for a new invitation.`,
    broken: (line: string) => `Something is wrong: ${line}`,
  },
} as const;
