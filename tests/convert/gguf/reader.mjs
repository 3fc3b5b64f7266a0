// llama.cpp, by node-llama-cpp: token ids of texts, the text of these ids, and the likeliest continuation of prompts.
// node reader.mjs FOLDER JOBS ANSWERS; FOLDER is where npm has installed it, the others are files of JSON.
import { createRequire } from "node:module";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(join(process.argv[2], "here.js"));
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(require.resolve("node-llama-cpp")));
const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error, progressLogs: false, maxThreads: 1 });
const answers = [];
for (const job of JSON.parse(readFileSync(process.argv[3], "utf8"))) {
  const model = await llama.loadModel({ modelPath: job.model, gpuLayers: 0 });
  const ids = job.texts.map((text) => model.tokenize(text, false));
  const texts = ids.map((tokens) => model.detokenize(tokens, false));
  const ends = [...Array(job.vocabulary).keys()].filter((token) => model.isEogToken(token));
  const context = await model.createContext({
    contextSize: job.context, batchSize: 64, threads: 1, flashAttention: false,
    experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
  });
  const continuations = [];
  for (const prompt of job.prompts) {
    const sequence = context.getSequence();
    const found = [];
    for await (const token of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
      found.push(token);
      if (found.length === job.count) break;
    }
    continuations.push(found);
    sequence.dispose();
  }
  answers.push({ ids, texts, ends, continuations });
  await context.dispose();
  await model.dispose();
}
writeFileSync(process.argv[4], JSON.stringify(answers));
process.exit(0);
