/**
 * This phone as a node of Flower: the calls of the Fleet API, signed, on the server's clock, tried again where a line
 * breaks. Nothing here remembers anything across a reload; node.ts does.
 */
import { headers, joining, pem } from "./identity.js";
import { type Content, type Part, type Piece, content, names, sha256, unpack } from "./objects.js";
import {
  type Bytes,
  type Id,
  type Metadata,
  type Pulled,
  type Tree,
  aboutRequest,
  activateRequest,
  activateResponse,
  heartbeatRequest,
  heartbeatResponse,
  pullObjectResponse,
  pullRequest,
  pullResponse,
  pushObjectRequest,
  pushObjectResponse,
  pushRequest,
  pushResponse,
  runResponse,
} from "./proto.js";

/** Seconds between two signs of life, as many as Flower allows: what a phone says before it vanishes still counts. */
export const HEARTBEAT = 1800;

/** No answer came: the network or the server is away. Worth trying again. */
export class Unreachable extends Error {}

/** The server said no, and why in one line. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    readonly code: number | null,
    line: string,
  ) {
    super(line);
  }
}

/** Flower's number for a run that takes no more answers. */
export const RUN_IS_OVER = 2007;
const TIMEOUT = 30_000;
const MOST = 64 * 1024 * 1024;

export interface Surroundings {
  readonly fetch: typeof fetch;
  readonly now: () => number;
  readonly wait: (milliseconds: number) => Promise<void>;
}

export const surroundings: Surroundings = {
  fetch: (...given) => fetch(...given),
  now: () => Date.now(),
  wait: (milliseconds) => new Promise((done) => setTimeout(done, milliseconds)),
};

/** Seconds to wait before the next try after `failures` in a row: doubled up to half a minute, and never in step. */
export const backOff = (failures: number, random = Math.random()): number =>
  Math.min(30, 2 ** Math.min(failures, 5)) * (0.5 + random / 2);

/** The node `id` with its key. `instance` tells this device from another that somehow has the same key. */
export class Fleet {
  private publicKey = "";
  private offset = 0;
  sent = 0;
  received = 0;

  constructor(
    private readonly key: CryptoKeyPair,
    readonly id: Id,
    private readonly instance: string,
    private readonly base = "",
    private readonly around = surroundings,
  ) {}

  /** Now on the server's clock, in seconds. */
  now(): number {
    return (this.around.now() + this.offset) / 1000;
  }

  /** Say that we are there; the first time, or after an hour away, ask to be counted in. */
  async appear(): Promise<void> {
    if (heartbeatResponse(await this.call("send-node-heartbeat", heartbeatRequest(this.id, HEARTBEAT)))) return;
    const given = activateResponse(
      await this.call("activate-node", activateRequest(new TextEncoder().encode(await this.pem()), HEARTBEAT)),
    );
    if (given !== this.id)
      throw new Refused(409, null, `the server knows this key as node ${given}, not as ${this.id}`);
  }

  async pull(): Promise<Pulled | null> {
    return pullResponse(await this.call("pull-messages", pullRequest(this.id)))[0] ?? null;
  }

  /** The content of a message, each object checked against its name. */
  async objects(run: Id, tree: Tree): Promise<Content> {
    const parts = new Map<string, Part>();
    let total = 0;
    for (const id of names(tree)) {
      const found = await this.object(run, id);
      total += found.length;
      if (total > MOST) throw new Refused(413, null, `a question of more than ${MOST} bytes`);
      if ((await sha256(found)) !== id) throw new Refused(502, null, "an object that is not what its name says");
      parts.set(id, unpack(found));
    }
    return content(tree, (id) => {
      const part = parts.get(id);
      if (!part) throw new Refused(502, null, "a message that lacks one of its objects");
      return part;
    });
  }

  private async object(run: Id, id: string): Promise<Bytes> {
    for (let trial = 0; trial < 20; trial++) {
      const found = pullObjectResponse(await this.call("pull-object", aboutRequest(this.id, run, id)));
      if (found) return found;
      await this.around.wait(500);
    }
    throw new Unreachable("the server has not received its own question yet");
  }

  /** Tell the server that it may forget the objects of its message. */
  async confirm(run: Id, messageId: string): Promise<void> {
    await this.call("confirm-message-received", aboutRequest(this.id, run, messageId));
  }

  async config(run: Id): Promise<Record<string, number | boolean | string>> {
    return runResponse(await this.call("get-run", aboutRequest(this.id, run)));
  }

  /** Send an answer. The same answer again is no other: the server takes what it lacks of it. */
  async push(metadata: Metadata, piece: Piece): Promise<void> {
    const { wanted, session } = pushResponse(
      await this.call(
        "push-messages",
        pushRequest(this.id, { ...metadata, messageId: piece.tree.id }, piece.tree),
      ),
    );
    for (const id of wanted) {
      const part = piece.parts.get(id);
      if (!part) throw new Refused(502, null, "the server asks for an object that is not part of the answer");
      const stored = pushObjectResponse(
        await this.call("push-object", pushObjectRequest(this.id, metadata.runId, id, part, session)),
      );
      if (!stored) throw new Unreachable("the server did not keep a part of the answer");
    }
  }

  private async pem(): Promise<string> {
    return (this.publicKey ||= await pem(this.key));
  }

  /** One signed request. A clock that is off is set by the server's and the request repeated, once. */
  private async call(route: string, body: Bytes, again = true): Promise<Bytes> {
    const signed = await headers(this.key, await this.pem(), this.around.now() + this.offset);
    let response: Response, data: Bytes;
    try {
      response = await this.around.fetch(`${this.base}/v1/fleet/${route}`, {
        method: "POST",
        body,
        headers: { ...signed, "fedkd-instance": this.instance },
        cache: "no-store",
        credentials: "omit",
        redirect: "error",
        signal: AbortSignal.timeout(TIMEOUT),
      });
      data = new Uint8Array(await response.arrayBuffer());
    } catch (error) {
      throw new Unreachable(`no answer to ${route}: ${(error as Error).message}`);
    }
    this.sent += body.length;
    this.received += data.length;
    const date = Date.parse(response.headers.get("date") ?? "");
    const moved = Number.isNaN(date) ? 0 : date + 500 - this.around.now() - this.offset; // Date knows whole seconds
    if (Math.abs(moved) > 2000) this.offset += moved;
    if (response.ok) return data;
    if (response.status === 401 && again && Math.abs(moved) > 2000) return this.call(route, body, false);
    if ([429, 500, 502, 503, 504].includes(response.status))
      throw new Unreachable(`the server is busy or restarting (${response.status})`);
    const { code, line } = reason(data);
    throw new Refused(response.status, code, line || `${route}: ${response.status}`);
  }
}

/** The number and the line of an error, as Flower, FastAPI and the gate of fedkd write them. */
function reason(data: Uint8Array): { code: number | null; line: string } {
  try {
    const said = JSON.parse(new TextDecoder().decode(data)) as Record<string, unknown>;
    const line = said["error"] ?? said["detail"] ?? said["message"] ?? "";
    return { code: typeof said["code"] === "number" ? said["code"] : null, line: String(line).slice(0, 300) };
  } catch {
    return { code: null, line: "" };
  }
}

export interface Invitation {
  readonly code: string;
  readonly key: CryptoKeyPair;
  readonly name: string;
  /** The server's authority, as it says itself: what the key is shown for. */
  readonly authority: string;
}

/**
 * Ask to become a node, with the code of an invitation. Returns the node's number in decimal. A clock that is off by
 * more than two seconds is passed over for the server's, once: `offset` milliseconds later than ours.
 */
export async function register(
  invitation: Invitation,
  base = "",
  around = surroundings,
  offset = 0,
): Promise<string> {
  const { code, key, name, authority } = invitation;
  let response: Response, data: Bytes;
  try {
    response = await around.fetch(`${base}/fedkd/join`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      signal: AbortSignal.timeout(TIMEOUT),
      body: JSON.stringify({ code, name, ...(await joining(key, code, authority, around.now() + offset)) }),
    });
    data = new Uint8Array(await response.arrayBuffer());
  } catch (error) {
    throw new Unreachable(`no answer: ${(error as Error).message}`);
  }
  const moved = Date.parse(response.headers.get("date") ?? "") + 500 - around.now(); // NaN is not far off
  if (response.status === 403 && !offset && Math.abs(moved) > 2000) return register(invitation, base, around, moved);
  if (!response.ok)
    throw new Refused(
      response.status,
      null,
      reason(data).line || `the server refused to let this phone in (${response.status})`,
    );
  const id: unknown = (JSON.parse(new TextDecoder().decode(data)) as Record<string, unknown>)["node_id"];
  if (typeof id !== "string" || !/^\d{1,20}$/.test(id))
    throw new Refused(502, null, "the server gave this phone no number");
  return id;
}
