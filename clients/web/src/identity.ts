/** Who this phone is: a key that cannot leave the browser, and the signed headers that Flower's Fleet API wants. */
import { sha256 } from "./objects.js";
import { type Bytes, join } from "./proto.js";

const ALGORITHM = { name: "ECDSA", namedCurve: "P-256" } as const;
const encoder = new TextEncoder();

/** A new key pair. The private half can sign and nothing else: not even this page can read it. */
export const newKey = (): Promise<CryptoKeyPair> => crypto.subtle.generateKey(ALGORITHM, false, ["sign", "verify"]);

export const base64 = (data: Uint8Array): string =>
  btoa(Array.from(data, (byte) => String.fromCharCode(byte)).join(""));

/** The public key as Flower compares it: PEM to the byte as other libraries write it, or it is another key. */
export async function pem(key: CryptoKeyPair): Promise<string> {
  const body = base64(new Uint8Array(await crypto.subtle.exportKey("spki", key.publicKey)));
  return `-----BEGIN PUBLIC KEY-----\n${(body.match(/.{1,64}/g) ?? []).join("\n")}\n-----END PUBLIC KEY-----\n`;
}

/** A signature as WebCrypto gives it, r and s side by side, in the DER that everyone else wants. */
export function der(raw: Uint8Array): Bytes {
  const half = raw.length / 2;
  const whole = (part: Uint8Array): Uint8Array => {
    const start = Math.min(part.findIndex((byte) => byte !== 0) >>> 0, part.length - 1);
    const value = part.subarray(start);
    const padded = value[0]! & 0x80 ? join(Uint8Array.of(0), value) : value; // else it would read as negative
    return join(Uint8Array.of(2, padded.length), padded);
  };
  const both = join(whole(raw.subarray(0, half)), whole(raw.subarray(half)));
  return join(Uint8Array.of(0x30, both.length), both);
}

/** A time as Python writes it. */
const iso = (milliseconds: number): string => new Date(milliseconds).toISOString().replace("Z", "+00:00");

async function sign(key: CryptoKeyPair, text: string): Promise<string> {
  const raw = await crypto.subtle.sign({ name: "ECDSA", hash: "SHA-256" }, key.privateKey, encoder.encode(text));
  return base64(der(new Uint8Array(raw)));
}

/** What a device signs to join: of no use later, at another server, with another code or for another key. */
export async function statement(when: string, code: string, publicKey: string, authority: string): Promise<string> {
  const hashed = (text: string): Promise<string> => sha256(encoder.encode(text));
  return ["fedkd join", when, await hashed(code), await hashed(publicKey), authority].join("\n");
}

/** What shows, beside a code, that this phone has the private half of its key: `fedkd/fleet/identity.py`. */
export async function joining(
  key: CryptoKeyPair,
  code: string,
  authority: string,
  now: number,
): Promise<{ key: string; time: string; proof: string }> {
  const [time, publicKey] = [iso(now), await pem(key)];
  return { key: publicKey, time, proof: await sign(key, await statement(time, code, publicKey, authority)) };
}

/** The headers of a request at `now`, milliseconds on the server's clock. */
export async function headers(key: CryptoKeyPair, publicKey: string, now: number): Promise<Record<string, string>> {
  const timestamp = iso(now);
  return {
    "content-type": "application/protobuf",
    "flwr-public-key": base64(encoder.encode(publicKey)),
    "flwr-timestamp": timestamp,
    "flwr-signature": await sign(key, timestamp),
  };
}
