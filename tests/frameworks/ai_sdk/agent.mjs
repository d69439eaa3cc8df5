// Vercel's AI SDK with its telemetry on: an agent with a tool, and a tool that asks another agent. It knows nothing of Agent Lightning.
import { createOpenAI } from '@ai-sdk/openai';
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-http';
import { BatchSpanProcessor, NodeTracerProvider } from '@opentelemetry/sdk-trace-node';
import { generateText, stepCountIs, tool } from 'ai';
import { z } from 'zod';

const provider = new NodeTracerProvider({ spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter())] });
provider.register();
const model = createOpenAI().chat(process.env.AGL_MODEL);

async function agent(functionId, prompt, tools) {
  const experimental_telemetry = { isEnabled: true, functionId };
  const { text } = await generateText({ model, prompt, tools, stopWhen: stepCountIs(8), experimental_telemetry });
  return text;
}

const number = z.object({ x: z.number() });
const triple = tool({ description: 'Triples a number.', inputSchema: number, execute: ({ x }) => 3 * x });
const double = tool({ description: 'Doubles a number.', inputSchema: number, execute: ({ x }) => 2 * x });
const ask_critic = tool({
  description: 'Asks the critic.',
  inputSchema: z.object({ request: z.string() }),
  execute: ({ request }) => agent('critic', request, { triple }),
});
const answer = await agent('writer', `Solve ${process.env.AGL_TASK}.`, { double, ask_critic });
await provider.shutdown();
console.log(Number(answer.includes(process.env.AGL_TASK)));
