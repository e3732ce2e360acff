// Bundles the page into a folder: node build.mjs OUT
//
// Packages are looked for in NODE_PATH, so that none lies beside the sources
// (see `make page`). NiiVue reads Zarr, which is never
// loaded here; its decoders stay out, a third of the size.

import { copyFile, mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath } from "node:url";

const esbuild = createRequire(import.meta.url)("esbuild");
const HERE = path.dirname(fileURLToPath(import.meta.url));
const OUT = path.resolve(process.argv[2] ?? path.join(HERE, "dist"));

// Packages that come without the text of their licence: whose it is, as their
// repository says, and a file here with the text.
const TOLD = {
  "@niivue/niivue": ["Copyright (c) 2021, Niivue", "bsd-2-clause.txt"],
};

const unused = {
  name: "unused",
  setup(build) {
    build.onResolve({ filter: /^numcodecs\/(blosc|lz4|zstd)$/ }, ({ path }) => {
      return { path, namespace: "unused" };
    });
    build.onLoad({ filter: /.*/, namespace: "unused" }, () => {
      return { contents: "throw new Error('Zarr is not read here');" };
    });
  },
};

async function bundle(entry, external = []) {
  const made = await esbuild.build({
    entryPoints: [path.join(HERE, entry)],
    outfile: path.join(OUT, entry === "main.js" ? "page.js" : path.basename(entry)),
    bundle: true,
    charset: "utf8",
    external,
    format: "esm",
    legalComments: "none",
    logLevel: "warning",
    metafile: true,
    minify: true,
    nodePaths: [process.env.NODE_PATH ?? ""],
    plugins: [unused],
    target: ["es2022"],
  });
  return Object.keys(made.metafile.inputs);
}

/** Folders of the packages that files belong to. */
function packages(files) {
  const found = files.map((file) => file.match(/^(.*node_modules\/(?:@[^/]+\/)?[^/]+)\//)?.[1]);
  return [...new Set(found.filter(Boolean))].sort();
}

async function licence(folder) {
  const { name, version, license } = JSON.parse(
    await readFile(path.join(folder, "package.json"), "utf8"),
  );
  const file = (await readdir(folder)).find((one) => /^licen[cs]e/i.test(one));
  const [whose, known] = TOLD[name] ?? [];
  if (!license || !(file ?? known)) throw new Error(`${name} comes without a licence`);
  const own = await readFile(file ? path.join(folder, file) : path.join(HERE, known), "utf8");
  const text = [whose, own].filter(Boolean).join("\n\n");
  return `${name} ${version} (${license})\n\n${text.trim()}\n`;
}

await rm(OUT, { recursive: true, force: true });
await mkdir(OUT, { recursive: true });
const inputs = [
  ...(await bundle("main.js", ["./volume.js"])),
  ...(await bundle("volume.js")),
  ...(await bundle("page.css")),
];
const texts = await Promise.all(packages(inputs).map(licence));
const head = "The page is part of rcmed_jax (Apache-2.0). It holds these packages:\n";
await writeFile(path.join(OUT, "licences.txt"), [head, ...texts].join(`\n${"-".repeat(72)}\n\n`));
// Last, since the server takes its page for built once this is there.
for (const name of ["icon.svg", "index.html"]) {
  await copyFile(path.join(HERE, name), path.join(OUT, name));
}
