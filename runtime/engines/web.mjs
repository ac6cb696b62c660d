// One model in onnxruntime-web (wasm, one thread): requests and answers are lines of JSON.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const [home, path] = process.argv.slice(2);
const require = createRequire(home + "/");
const answer = (value) => process.stdout.write(JSON.stringify(value) + "\n");
const arrays = {
  float32: Float32Array, float64: Float64Array, int8: Int8Array, uint8: Uint8Array,
  int16: Int16Array, int32: Int32Array, int64: BigInt64Array, bool: Uint8Array, float16: Uint16Array,
};

const decoded = ({ type, dims, data }) => {
  const bytes = Uint8Array.from(Buffer.from(data, "base64"));
  return new ort.Tensor(type, new arrays[type](bytes.buffer), dims);
};
const encoded = ({ type, dims, data }) => ({
  type, dims, data: Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString("base64"),
});

let ort, session;
try {
  ort = require("onnxruntime-web");
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "fatal";
  session = await ort.InferenceSession.create(readFileSync(path), { executionProviders: ["wasm"] });
  answer({ version: ort.env.versions.web ?? ort.env.versions.common });
} catch (error) {
  answer({ error: String(error?.message ?? error) });
  process.exit(0);
}
for await (const line of createInterface({ input: process.stdin })) {
  try {
    const given = JSON.parse(line);
    const feeds = Object.fromEntries(Object.entries(given).map(([k, v]) => [k, decoded(v)]));
    const started = performance.now();
    const found = await session.run(feeds);
    const ms = performance.now() - started;
    answer({ ms, outputs: session.outputNames.map((name) => encoded(found[name])) });
  } catch (error) {
    answer({ error: String(error?.message ?? error) });
  }
}
process.exit(0);
