/** Parts chosen by one string in call syntax, as in fedkd/registry.py: `"quantize(bits=8) | weights(bits=5)"`. */

import { Refusal } from "./errors.js";

/** What an option may be worth. */
export type Value = number | string | boolean;

/** A part by name, with the options that were given. */
export interface Spec {
  name: string;
  options: Readonly<Record<string, Value>>;
}

const CALL = /^([A-Za-z_]\w*)(?:\((.*)\))?$/s;
const OPTION = /^([A-Za-z_]\w*)\s*=\s*(.+)$/s;
const NUMBER = /^[+-]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][+-]?\d+)?$/;

/** Return name and options of `"name"` or `"name(option=value)"`. */
export function parse(text: string): Spec {
  const call = CALL.exec(text.trim());
  const given = call?.[2]?.trim() ?? "";
  if (call === null) throw unreadable(text);
  const options: Record<string, Value> = {};
  for (const one of given === "" ? [] : split(given.replace(/,\s*$/, ""), ",")) {
    const found = OPTION.exec(one);
    if (found === null || found[1]! in options) throw unreadable(text);
    options[found[1]!] = literal(found[2]!, text);
  }
  return { name: call[1]!, options };
}

/** Split at `separator` outside of brackets and quotes. */
export function split(text: string, separator: string): string[] {
  const pieces = [""];
  let depth = 0;
  let quote = "";
  for (const letter of text) {
    if (quote) quote = letter === quote ? "" : quote;
    else if (letter === "'" || letter === '"') quote = letter;
    else if ("([{".includes(letter)) depth += 1;
    else if (")]}".includes(letter)) depth -= 1;
    if (letter === separator && depth === 0 && !quote) pieces.push("");
    else pieces[pieces.length - 1] += letter;
  }
  if (pieces.some((piece) => piece.trim() === "")) throw unreadable(text);
  return pieces.map((piece) => piece.trim());
}

/** Return the options of `spec` over their `defaults`; one that is unknown or of another type is refused. */
export function options<T extends Record<string, Value>>(spec: Spec, defaults: T, where: string): T {
  const all: Record<string, Value> = { ...defaults };
  for (const [key, value] of Object.entries(spec.options)) {
    const takes = Object.keys(defaults).join(", ") || "none";
    if (!(key in defaults)) throw new Refusal(`${where}: ${spec.name} has no option '${key}' here; it takes ${takes}`);
    const kind = typeof defaults[key];
    if (typeof value !== kind) throw new Refusal(`${where}: ${spec.name}: '${key}' must be a ${kind}, got ${value}`);
    all[key] = value;
  }
  return all as T;
}

/** Refuse unless every option is above 0 and finite. */
export function aboveZero(where: string, name: string, given: Readonly<Record<string, Value>>): void {
  for (const [key, value] of Object.entries(given)) {
    if (!(typeof value === "number" && value > 0 && value < Infinity)) {
      throw new Refusal(`${where}: ${name}: '${key}' must be above 0 and finite, got ${value}`);
    }
  }
}

function literal(text: string, whole: string): Value {
  if (text === "True" || text === "False") return text === "True";
  if (text === "inf") return Infinity;
  if (NUMBER.test(text)) return Number(text.replaceAll("_", ""));
  if (/^(['"])[^'"\\]*\1$/.test(text)) return text.slice(1, -1);
  throw unreadable(whole);
}

function unreadable(text: string): Refusal {
  return new Refusal(`cannot read '${text.slice(0, 100)}'; expected 'name' or 'name(option=value)'`);
}
