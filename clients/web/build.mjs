// Builds what the server hands to a phone: every entry below that is there, one file each, readable, the same to the
// byte wherever it is built. `node build.mjs [FOLDER]`; without a folder, the one that the Python package ships.
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "..", "..", "fedkd", "serving", "page");

/** `science` is a library without a page: the worker imports it, and so do the tests, with nothing but node. */
const entries = ["science", "worker", "page", "service"].map((name) => join(here, "src", `${name}.ts`));

await build({
  absWorkingDir: here,
  entryPoints: entries.filter((path) => existsSync(path)),
  outdir: out,
  bundle: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  external: ["./science.js"],
  logLevel: "warning",
});
