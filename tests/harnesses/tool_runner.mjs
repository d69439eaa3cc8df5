import Anthropic from "@anthropic-ai/sdk";
import { betaTool } from "@anthropic-ai/sdk/helpers/beta/json-schema";
const client = new Anthropic({ maxRetries: 0 });
const weather = betaTool({
  name: "weather", description: "The weather of a city.",
  inputSchema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  run: ({ city }) => `rain in ${city}`,
});
const runner = client.beta.messages.toolRunner({
  model: "scripted", max_tokens: 50, system: "Be kind.", tools: [weather], stream: process.argv[2] === "stream",
  messages: [{ role: "user", content: "the secret is 7" }],
});
const message = await runner.runUntilDone();
console.log(message.content[0].text);
