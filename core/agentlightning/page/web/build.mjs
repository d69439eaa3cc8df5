// Builds the page into ../static: one script, one style sheet, the licences of what is bundled, and build.json.
// build.json holds the hash of the sources and of each built file. A test compares both, so a stale bundle does not ship.
import { build } from "esbuild";
import { createHash } from "node:crypto";
import { copyFileSync, readFileSync, readdirSync, writeFileSync } from "node:fs";

const out = "../static";
const result = await build({
  entryPoints: { app: "src/main.tsx" },
  bundle: true,
  minify: true,
  format: "iife",
  target: ["es2022"],
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
  outdir: out,
  metafile: true,
});

const bundled = new Set(
  Object.keys(result.metafile.inputs).map((path) => path.match(/node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1]).filter(Boolean),
);
const licences = [...bundled].sort().map((name) => {
  const folder = `node_modules/${name}`;
  const { version, license } = JSON.parse(readFileSync(`${folder}/package.json`, "utf8"));
  const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
  return `${name} ${version} (${license})\n\n${readFileSync(`${folder}/${file}`, "utf8").trim()}\n`;
});
writeFileSync(`${out}/licences.txt`, `app.js and app.css contain these libraries.\n\n${licences.join("\n" + "-".repeat(80) + "\n\n")}`);
copyFileSync("index.html", `${out}/index.html`);
copyFileSync("icon.svg", `${out}/icon.svg`);

const sha = (parts) => parts.reduce((hash, part) => hash.update(part), createHash("sha256")).digest("hex");
const sources = ["package.json", "package-lock.json", "build.mjs", "tsconfig.json", "index.html", "icon.svg"];
sources.push(...readdirSync("src").sort().map((name) => `src/${name}`));
const built = { sources: sha(sources.flatMap((name) => [`${name}\0`, readFileSync(name), "\0"])) };
for (const name of ["app.js", "app.css", "index.html", "icon.svg", "licences.txt"]) built[name] = sha([readFileSync(`${out}/${name}`)]);
writeFileSync(`${out}/build.json`, JSON.stringify(built, null, 2) + "\n");
