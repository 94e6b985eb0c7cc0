// What the page shows, one state and one event at a time.
import assert from "node:assert/strict";
import { test } from "node:test";
import { page } from "./support.mjs";

const said = {
  fedkd: "0.1.0",
  wire: 2,
  name: "digits",
  classes: 3,
  class_names: ["a", "b", "c"],
  shape: [1, 4, 4],
  rows: 5,
  fingerprint: "ab".repeat(32),
  config: { protect: "none", rounds: 2, release: "float16" },
  shards: 4,
};
const about = page.readAbout(said);
const data = { kind: "shard", title: "0", counts: [2, 0, 1] };
const opening = { kind: "opened", about, invited: true, member: false, agreed: false, data: null, log: [], why: null };
const sent = {
  round: 1,
  run: "1",
  at: 0,
  seconds: 1,
  frame: 10,
  bytes: 20,
  digest: "ab",
  refusal: null,
  delivered: true,
};
const go = (...events) => events.reduce(page.next, page.START);
const joined = () => go(opening, { kind: "agreed" }, { kind: "chosen", data }, { kind: "joined" });

test("a guest is asked first, then for data, and only then joins", () => {
  assert.equal(go(opening).screen, "welcome");
  const choosing = go(opening, { kind: "agreed" });
  assert.equal(choosing.screen, "data");
  assert.equal(page.canStart(choosing), false);
  assert.equal(page.canStart(page.next(choosing, { kind: "chosen", data: { ...data, counts: [1, 0, 0] } })), false);
  const ready = page.next(choosing, { kind: "chosen", data });
  assert.equal(page.canStart(ready), true);
  assert.equal(page.canStart(page.next(ready, { kind: "busy", is: true })), false);
  assert.equal(page.mayWork(ready), false);
  assert.equal(page.mayWork(joined()), true);
});

test("nobody starts without an invitation, but a member needs none", () => {
  const ready = (more) => go({ ...opening, ...more }, { kind: "agreed" }, { kind: "chosen", data });
  assert.equal(page.canStart(ready({ invited: false })), false);
  assert.equal(page.canStart(ready({ invited: false, member: true })), true);
});

test("a reload goes on where it was, and another run asks again", () => {
  const member = { ...opening, member: true, data, invited: false };
  assert.equal(go({ ...member, agreed: true }).screen, "joined");
  assert.equal(go({ ...member, agreed: false }).screen, "welcome");
  assert.equal(go({ ...member, agreed: true, data: null }).screen, "welcome");
  assert.equal(go({ ...member, agreed: true, why: "over" }).screen, "done");
  assert.equal(go({ ...member, agreed: false, why: "over" }).screen, "welcome");
  const other = { ...data, counts: [9] }; // of a run with other classes
  assert.equal(go({ ...member, agreed: true, data: other }).data, null);
});

test("what is paused or out of sight does not work, and goes on after", () => {
  const hidden = page.next(joined(), { kind: "visible", is: false });
  assert.equal(page.mayWork(hidden), false);
  assert.equal(page.mayWork(page.next(hidden, { kind: "visible", is: true })), true);
  const paused = page.next(joined(), { kind: "pause" });
  assert.equal(page.mayWork(paused), false);
  assert.equal(page.mayWork(page.next(paused, { kind: "visible", is: true })), false);
  assert.equal(page.mayWork(page.next(paused, { kind: "resume" })), true);
});

test("progress is of this round's training and stays within bounds", () => {
  const training = page.next(joined(), { kind: "doing", doing: "training", round: 1 });
  assert.equal(page.next(training, { kind: "progress", share: 7, part: "x" }).progress, 1);
  assert.equal(page.next(training, { kind: "progress", share: -1, part: "x" }).progress, 0);
  const half = page.next(training, { kind: "progress", share: 0.5, part: "x" });
  assert.deepEqual([half.progress, half.part, half.round], [0.5, "x", 1]);
  assert.equal(page.next(half, { kind: "doing", doing: "training", round: 2 }).progress, 0);
  const waiting = page.next(half, { kind: "doing", doing: "waiting" });
  assert.equal(page.next(waiting, { kind: "progress", share: 0.9, part: "late" }).progress, 0.5);
  assert.deepEqual(page.next(half, { kind: "sent", sent }).log, [sent]);
});

test("what comes late from a node that was left changes nothing", () => {
  const left = page.next(joined(), { kind: "ended", why: "left" });
  assert.equal(left.screen, "done");
  assert.deepEqual(page.next(left, { kind: "doing", doing: "training", round: 2 }), left);
  assert.deepEqual(page.next(left, { kind: "pause" }), left);
  assert.equal(page.next(left, { kind: "again" }).screen, "welcome");
  assert.deepEqual(page.next(left, { kind: "deleted" }), { ...page.START, screen: "deleted", about });
});

test("a line that breaks is told, and forgotten when it holds again", () => {
  const away = page.next(joined(), { kind: "doing", doing: "unreachable", line: "x" });
  assert.deepEqual([away.doing, away.trouble, away.screen], ["unreachable", "x", "joined"]);
  assert.equal(page.next(away, { kind: "doing", doing: "waiting" }).trouble, null);
});

test("a server that says nonsense of its run is not believed", () => {
  const wrong = {
    wire: 3,
    classes: 1,
    shape: [],
    rows: 0,
    fingerprint: "AB",
    config: null,
  };
  for (const [key, value] of Object.entries(wrong))
    assert.throws(() => page.readAbout({ ...said, [key]: value }), page.AboutError, key);
  assert.throws(() => page.readAbout(null), page.AboutError);
  assert.deepEqual(page.readAbout({ ...said, class_names: ["x"] }).classNames, ["0", "1", "2"]);
  assert.equal(page.readAbout({ ...said, shards: -1 }).shards, 0);
  assert.equal(page.readAbout({ ...said, authority: "00ff" }).authority, "00ff");
  for (const authority of [undefined, null, 7]) assert.equal(page.readAbout({ ...said, authority }).authority, "");
});

test("settings that change what leaves are not those that were agreed to", () => {
  const config = { ...about.config, output: "", resolved: true };
  assert.equal(page.differs(about.config, config), null);
  assert.equal(page.differs(about.config, { ...config, protect: "local" }), "protect");
  assert.equal(page.differs(about.config, { ...config, unknown: 1 }), "unknown");
  assert.equal(page.differs({ ...config, epsilon: 1 }, config), "epsilon");
  assert.equal(page.sameRun(about, { ...about, fingerprint: "cd".repeat(32) }), false);
});
