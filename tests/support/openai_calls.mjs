// OpenAI's client for Node does what each line of JSON says: {url, key, call, with}. A line for each
// says what came of it: {answer}, {items} of a stream or of a list, or {error}.
import { createInterface } from "node:readline";
import OpenAI, { APIError } from "openai";

async function done({ url, key, call, with: given }) {
  const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0 });
  const names = call.split(".");
  const owner = names.slice(0, -1).reduce((at, name) => at[name], client);
  const answer = await owner[names.at(-1)](...given);
  if (!answer?.[Symbol.asyncIterator]) return { answer };
  const items = [];
  for await (const each of answer) items.push(each);
  return { items };
}

function told(error) {
  if (!(error instanceof APIError)) throw error;
  const { status, code, param, type, message } = error;
  const retry = error.headers?.get("retry-after") ?? null;
  return { error: { kind: error.constructor.name, status, code, param, type, message, retry } };
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await done(JSON.parse(line)).catch(told)));
}
