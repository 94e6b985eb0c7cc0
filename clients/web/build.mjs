// Builds what the server hands to a phone: every entry below, one file each, readable, the same to the byte wherever it
// is built, beside the files of page/ as they are. `node build.mjs [FOLDER]`; without a folder, the one that the Python
// package ships.
import { copyFileSync, mkdirSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "..", "..", "fedkd", "serving", "page");

/** `science` and `protocol` are libraries: worker and page import them, and so do the tests, with nothing but node. */
const entries = ["src/science.ts", "src/protocol.ts", "src/worker.ts", "src/app.ts", "page/sw.ts"];

await build({
  absWorkingDir: here,
  entryPoints: entries.map((path) => ({ in: join(here, path), out: path.split("/")[1].replace(".ts", "") })),
  outdir: out,
  bundle: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  external: ["./science.js", "./protocol.js"],
  logLevel: "warning",
});
mkdirSync(out, { recursive: true });
for (const name of readdirSync(join(here, "page")))
  if (!name.endsWith(".ts")) copyFileSync(join(here, "page", name), join(out, name));
