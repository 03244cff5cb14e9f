// Vercel's AI SDK: it runs the tool by itself.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [url, model, first, second, third] = process.argv.slice(2);
const plimsoll = createOpenAICompatible({ name: "plimsoll", baseURL: `${url}/v1` })(model);
const weather = tool({
  description: "Tells the weather of a city.",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `sunny in ${city}`,
});
const messages = [];
for (const question of [first, second]) {
  messages.push({ role: "user", content: question });
  const done = await generateText({ model: plimsoll, messages, tools: { weather }, stopWhen: stepCountIs(3) });
  messages.push(...done.response.messages);
  console.log(done.text);
}
messages.push({ role: "user", content: third });
for await (const text of streamText({ model: plimsoll, messages }).textStream) process.stdout.write(text);
