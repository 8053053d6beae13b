// OpenAI's client for Node before the gateway (docs/openai.md): a vector, then an answer as it comes.
//
//   npm install --omit=dev --no-package-lock --prefix clients
//   node clients/openai_node.mjs "What is a kitten?" [chat model] [embed model]
//
// OPENAI_BASE_URL (http://127.0.0.1:8004/v1) and OPENAI_API_KEY say where and who.
import OpenAI from "openai";

const [question = "What is a kitten?", chat = "chat", embed = "embed"] = process.argv.slice(2);
const client = new OpenAI({
  baseURL: process.env.OPENAI_BASE_URL ?? "http://127.0.0.1:8004/v1",
  apiKey: process.env.OPENAI_API_KEY ?? "none",
});

const names = [];
for await (const model of client.models.list()) names.push(model.id);
console.log(`models: ${names.join(", ")}`);

if (names.includes(embed)) {
  const { data, usage } = await client.embeddings.create({ model: embed, input: question });
  console.log(`${embed}: ${data[0].embedding.length} values of ${usage.total_tokens} tokens`);
}
if (names.includes(chat)) {
  const events = await client.chat.completions.create({
    model: chat,
    messages: [{ role: "user", content: question }],
    max_completion_tokens: 64,
    stream: true,
    stream_options: { include_usage: true },
  });
  for await (const { choices, usage } of events) {
    process.stdout.write(choices[0]?.delta.content ?? "");
    if (usage) console.log(`\n(${usage.completion_tokens} tokens)`);
  }
}
