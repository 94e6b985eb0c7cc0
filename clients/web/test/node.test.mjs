// A node, and a server in memory that speaks Fleet: nothing is lost when lines break, pages reload and servers lie.
import assert from "node:assert/strict";
import { createVerify } from "node:crypto";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { page } from "./support.mjs";

const ID = 18364758544493064720n,
  RUN = 42n,
  NOW = 1_795_300_000_000;
const CONFIG = { protect: "none", rounds: 2 };
const text = (value) => new TextEncoder().encode(value);
const key = await page.newKey();

/** One node's view of a SuperLink: it gives each question once, and keeps what is pushed. */
class Server {
  constructor(questions = []) {
    Object.assign(this, {
      questions,
      objects: new Map(),
      answers: [],
      asked: [],
      registered: true,
      active: false,
      over: false,
      fails: () => null,
      skew: 0,
      also: {},
    });
  }

  async ask(records, { ttl = 600, type = "query.release", run = RUN } = {}) {
    const metadata = {
      runId: run,
      messageId: "",
      source: 1n,
      target: ID,
      replyTo: "",
      group: "1",
      ttl,
      type,
      createdAt: NOW / 1000,
      sourceTask: 7n,
      targetTask: null,
    };
    const piece = await page.message(metadata, "query", records);
    this.questions.push({ metadata: { ...metadata, messageId: piece.tree.id }, tree: piece.tree });
    for (const [id, part] of piece.parts) this.objects.set(id, part);
  }

  fetch = async (url, { body, headers }) => {
    const route = url.split("/").at(-1);
    this.asked.push(route);
    const trouble = this.fails(route, this.asked.length);
    if (trouble === "line") throw new TypeError("network error");
    const late = (NOW + this.skew - Date.parse(headers["flwr-timestamp"])) / 1000;
    const status = typeof trouble === "number" ? trouble : !(late > -5 && late < 305) ? 401 : 200;
    const date = new Date(NOW + this.skew).toUTCString();
    const said = status === 200 ? this.answer(route, page.join(body)) : page.join(text(`{"error": "no ${status}"}`));
    const [code, data] = Array.isArray(said) ? said : [status, said];
    return new Response(data, { status: code, headers: { date } });
  };

  answer(route, body) {
    if (this.over && ["get-run", "pull-object", "push-messages", "confirm-message-received"].includes(route))
      return [403, text('{"code": 2007, "detail": "the run is not running"}')];
    const field = (...parts) => page.join(...parts);
    const bytes = (n, value) => field(Uint8Array.of(8 * n + 2), length(value), value);
    switch (route) {
      case "send-node-heartbeat":
        return this.active ? Uint8Array.of(8, 1) : new Uint8Array();
      case "activate-node":
        this.active = true;
        return field(Uint8Array.of(8), varint(ID));
      case "pull-messages": {
        const next = this.questions.shift();
        return next
          ? field(bytes(2, page.writeMessage(next.metadata)), bytes(3, page.writeTree(next.tree)))
          : new Uint8Array();
      }
      case "pull-object":
        return field(Uint8Array.of(8, 1, 16, 1), bytes(3, this.objects.get(find(body, this.objects))));
      case "get-run":
        return bytes(
          1,
          field(
            ...Object.entries({ ...CONFIG, ...this.also }).map(([name, value]) =>
              bytes(
                4,
                field(
                  bytes(1, text(name)),
                  bytes(2, typeof value === "string" ? bytes(14, text(value)) : Uint8Array.of(64, 2 * value)),
                ),
              ),
            ),
          ),
        );
      case "push-messages": {
        this.pushed ??= new Map();
        const ids = [
          ...new Set(
            Buffer.from(body)
              .toString("latin1")
              .match(/[0-9a-f]{64}/g),
          ),
        ].filter((id) => !this.objects.has(id) && !this.pushed.has(id));
        return field(
          ...ids.filter((id) => id !== this.replyTo).map((id) => bytes(3, text(id))),
          bytes(4, text("session")),
        );
      }
      case "push-object": {
        const content = body.subarray(body.indexOf(0x22) + 1); // of the pieces only that of the release is looked at
        this.pushed.set(find(body), Buffer.from(content).toString("latin1"));
        return Uint8Array.of(8, 1);
      }
      default:
        return new Uint8Array();
    }
  }
}

function varint(value) {
  const out = [];
  for (; value > 127n; value >>= 7n) out.push(Number(value & 127n) | 128);
  return Uint8Array.from([...out, Number(value)]);
}
const length = (value) => varint(BigInt(value.length));
const find = (body, among) =>
  Buffer.from(body)
    .toString("latin1")
    .match(/[0-9a-f]{64}/g)
    .find((id) => !among || among.has(id));

function phone(server, { store = page.memoryStore(), agreed = CONFIG, answer, clock = NOW } = {}) {
  const told = [],
    jobs = [];
  let now = clock;
  const around = { fetch: server.fetch, now: () => now, wait: async () => {} };
  const fleet = new page.Fleet(key, ID, "device", "", around);
  const node = new page.Node(
    {
      fleet,
      store,
      agreed,
      roundOf: (frame) => frame[0],
      tell: (what) => told.push(what),
      ready: async () => {},
      wait: async (milliseconds) => {
        now += milliseconds;
        if (told.length > 60) node.stop();
      },
      digest: page.sha256,
      answer: async (job) => {
        jobs.push(job);
        return answer ? answer(job) : { frame: text(`answer ${job.frame[0]}`) };
      },
    },
    () => now,
  );
  const turns = async (most = 12) => {
    for (let k = 0; k < most; k++) if ((await node.turn()) !== "worked") break;
  };
  return { node, store, told, jobs, turns, fleet };
}

const frame = (round) => Uint8Array.of(round, 1, 2);
const log = async (store) => Promise.all((await store.names("sent.")).map((name) => store.get(name)));

test("a question is taken, answered once and sent, and the log says so", async () => {
  const server = new Server();
  await server.ask({ frame: frame(1), acknowledged: 3n });
  const { turns, jobs, store } = phone(server);
  await turns();
  assert.equal(jobs.length, 1);
  assert.deepEqual([jobs[0].acknowledged, jobs[0].run, jobs[0].key, jobs[0].config], [3, "42", String(ID), CONFIG]);
  const [sent] = await log(store);
  assert.deepEqual([sent.round, sent.delivered, sent.refusal, sent.frame], [1, true, null, 8]);
  assert.ok([...server.pushed.values()].some((part) => part.includes("answer 1")));
  assert.deepEqual(await store.get("outbox"), undefined);
  assert.deepEqual(server.asked.slice(0, 3), ["send-node-heartbeat", "activate-node", "pull-messages"]);
});

test("on return it only says that it is alive: activating again would be refused", async () => {
  const server = new Server();
  server.active = true;
  await phone(server).turns(1);
  assert.deepEqual(server.asked, ["send-node-heartbeat", "pull-messages"]);
});

test("a page that is reloaded after any request loses no question and trains no answer twice", async () => {
  for (let death = 1; death < 16; death++) {
    const server = new Server(),
      store = page.memoryStore();
    await server.ask({ frame: frame(1) });
    let trained = 0;
    const answer = (job) => {
      trained++;
      return { frame: text(`answer ${job.frame[0]}`) };
    };
    server.fails = (_, n) => (n === death ? "line" : null);
    const first = phone(server, { store, answer });
    await first.turns().catch((error) => assert.ok(error instanceof page.Unreachable, error));
    const before = await store.get("outbox");
    server.fails = () => null;
    const second = phone(server, { store, answer });
    await second.turns();
    const lost = server.asked[death - 1] === "pull-messages"; // never arrived there, so not given yet
    const done = await log(store);
    assert.equal(done.length, 1, `after request ${death}, ${server.asked[death - 1]}`);
    assert.equal(trained, 1, `after request ${death}`);
    if (before && !lost)
      assert.ok([...server.pushed.keys()].some((id) => id === before.tree.id || before.parts.has(id)));
  }
});

test("an answer that is sent again is the same to the byte, salt included", async () => {
  const server = new Server(),
    store = page.memoryStore();
  await server.ask({ frame: frame(1) });
  server.fails = (route) => (route === "push-messages" ? "line" : null);
  await phone(server, { store })
    .turns()
    .catch(() => {});
  const first = await store.get("outbox");
  await phone(server, { store })
    .turns()
    .catch(() => {});
  assert.deepEqual(await store.get("outbox"), first);
});

test("two answers of the same bytes have different names: nobody can tell whether they are equal", async () => {
  const ids = [];
  for (let k = 0; k < 2; k++) {
    const server = new Server(),
      store = page.memoryStore();
    await server.ask({ frame: frame(1) });
    server.fails = (route) => (route === "push-messages" ? "line" : null);
    await phone(server, { store })
      .turns()
      .catch(() => {});
    ids.push((await store.get("outbox")).tree.children[0].children[0].id);
  }
  assert.notEqual(ids[0], ids[1]);
});

test("a clock that is an hour off is set by the server's, and nobody notices", async () => {
  for (const skew of [-3_600_000, 3_600_000, 30_000]) {
    const server = new Server();
    server.skew = skew;
    const { turns, fleet } = phone(server);
    await turns(1);
    assert.deepEqual(server.asked, [
      "send-node-heartbeat",
      ...(skew === 3_600_000 || skew < 0 ? ["send-node-heartbeat"] : []),
      "activate-node",
      "pull-messages",
    ]);
    assert.ok(Math.abs(fleet.now() * 1000 - NOW - skew) < 1000);
  }
});

test("what a phone's owner did not agree to is refused, and nothing is computed", async () => {
  const server = new Server();
  await server.ask({ frame: frame(1) });
  const { turns, jobs, store } = phone(server, { agreed: { ...CONFIG, protect: "dp_sgd" } });
  await turns();
  assert.equal(jobs.length, 0);
  assert.match((await log(store))[0].refusal, /protect is not what this phone's owner agreed to/);
});

test("a run that names itself once it runs is the one that was agreed to, and its name is that of its ledger", async () => {
  const server = new Server();
  server.also = { "run-name": "ward-7f3a" };
  await server.ask({ frame: frame(1) });
  const { turns, jobs } = phone(server);
  await turns();
  assert.deepEqual([jobs.length, jobs[0]?.run], [1, "ward-7f3a"]);
});

test("a question that is none of ours is refused and not trained", async () => {
  for (const [records, more] of [
    [{ frame: frame(1) }, { type: "train.weights" }],
    [{ other: 1n }, {}],
  ]) {
    const server = new Server();
    await server.ask(records, more);
    const { turns, jobs, store } = phone(server);
    await turns();
    assert.equal(jobs.length, 0);
    assert.match((await log(store))[0].refusal, /answers query.release with a frame/);
  }
});

test("an object that is not what its name says is not believed", async () => {
  const server = new Server();
  await server.ask({ frame: frame(1) });
  const [id] = [...server.objects.keys()];
  server.objects.set(id, text("ConfigRecord  0\0"));
  await assert.rejects(
    phone(server).turns(),
    (error) => error instanceof page.Refused && /not what its name says/.test(error.message),
  );
});

test("a run that is over is told, and an answer for it is noted as too late", async () => {
  const server = new Server(),
    store = page.memoryStore();
  await server.ask({ frame: frame(1) });
  const one = phone(server, { store, answer: async (job) => ((server.over = true), { frame: job.frame }) });
  await one.node.live();
  assert.equal(one.told.at(-1).kind, "over");
  assert.deepEqual(
    (await log(store)).map((sent) => sent.delivered),
    [false],
  );
  const two = phone(server, { store });
  await two.node.live();
  assert.equal(two.told.at(-1).kind, "over");
});

test("a server that ends with its last round is thanked, not looked for", async () => {
  const server = new Server(),
    store = page.memoryStore();
  await server.ask({ frame: frame(2) });
  server.fails = (_, n) => (n > 12 ? "line" : null);
  const { node, told } = phone(server, { store });
  await node.live();
  assert.deepEqual(told.map((what) => what.kind).slice(-5), ["sent", ...Array(3).fill("unreachable"), "over"]);
  const early = new Server();
  await early.ask({ frame: frame(1) });
  early.fails = (_, n) => (n > 12 ? "line" : null);
  const other = phone(early);
  await other.node.live(); // until the test's patience ends it
  assert.equal(other.told.at(-1).kind, "unreachable");
});

test("a question whose time is up is not answered", async () => {
  const server = new Server();
  await server.ask({ frame: frame(1) }, { ttl: -1 });
  const { turns, jobs, store } = phone(server);
  await turns();
  assert.equal(jobs.length, 0);
  assert.equal(await store.get("inbox"), undefined);
});

test("a server that does not know the phone is told apart from one that is away", async () => {
  const away = new Server();
  away.fails = (_, n) => (n < 4 ? "line" : n < 6 ? 502 : n < 7 ? 429 : 401);
  const { node, told } = phone(away);
  await node.live();
  assert.deepEqual(
    told.map((what) => what.kind),
    [...Array(6).fill("unreachable"), "stranger"],
  );
  assert.equal(told.at(-1).line, "no 401");
});

test("a server that gives another number than it gave at first is not answered", async () => {
  const server = new Server();
  const { told } = await (async () => {
    const fleet = new page.Fleet(key, 5n, "device", "", { fetch: server.fetch, now: () => NOW, wait: async () => {} });
    const error = await fleet.appear().catch((one) => one);
    return { told: error };
  })();
  assert.match(told.message, /knows this key as node 18364758544493064720, not as 5/);
});

test("joining gives a number, or one line that says why not", async () => {
  const asked = [];
  const around = (status, body) => ({
    fetch: async (url, given) => (asked.push([url, JSON.parse(given.body)]), new Response(body, { status })),
    now: () => NOW,
    wait: async () => {},
  });
  const guest = { code: "abc", key, name: "phone", authority: "00ff" };
  assert.equal(
    await page.register(guest, "", around(200, '{"node_id": "18364758544493064720"}')),
    "18364758544493064720",
  );
  const [where, { time, proof, ...rest }] = asked[0];
  assert.deepEqual([where, rest], ["/fedkd/join", { code: "abc", key: await page.pem(key), name: "phone" }]);
  assert.equal(Date.parse(time), NOW);
  assert.ok(proves(rest.key, await page.statement(time, "abc", rest.key, "00ff"), proof));
  await assert.rejects(page.register(guest, "", around(403, '{"error": "used already"}')), /used already/);
  await assert.rejects(page.register(guest, "", around(200, '{"node_id": 5}')), /no number/);
});

const proves = (pem, statement, proof) => createVerify("SHA256").update(statement).verify(pem, proof, "base64");

test("what shows that a phone has its key is what Python writes and checks", async () => {
  const { code, key: pem, time, authority, statement, proof } = JSON.parse(
    readFileSync(new URL("../../../tests/vectors/join.json", import.meta.url)),
  );
  assert.equal(await page.statement(time, code, pem, authority), statement);
  assert.ok(proves(pem, statement, proof));
  const shown = await page.joining(key, code, authority, Date.parse(time));
  assert.equal(Date.parse(shown.time), Date.parse(time));
  assert.ok(proves(shown.key, await page.statement(shown.time, code, shown.key, authority), shown.proof));
  assert.ok(!proves(shown.key, await page.statement(shown.time, code, shown.key, "another server"), shown.proof));
});

test("a phone whose clock is off joins by the server's, and asks no third time", async () => {
  for (const [skew, status, times] of [
    [0, 403, 1],
    [3_600_000, 200, 2],
    [3_600_000, 403, 2],
  ]) {
    const asked = [];
    const fetch = async (_, { body }) => {
      asked.push(Date.parse(JSON.parse(body).time));
      const date = new Date(NOW + skew).toUTCString();
      const good = status === 200 && Math.abs(asked.at(-1) - NOW - skew) < 2000;
      return new Response(good ? '{"node_id": "5"}' : '{"error": "no"}', { status: good ? 200 : 403, headers: { date } });
    };
    const guest = { code: "abc", key, name: "phone", authority: "" };
    const joined = page.register(guest, "", { fetch, now: () => NOW, wait: async () => {} });
    if (status === 200) assert.equal(await joined, "5");
    else await assert.rejects(joined, /no/);
    assert.equal(asked.length, times);
  }
});
