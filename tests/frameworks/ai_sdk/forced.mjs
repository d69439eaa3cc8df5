// Vercel's AI SDK with a tool that the model must call. It prints the tool's arguments.
import { createOpenAI } from '@ai-sdk/openai';
import { generateText, tool } from 'ai';
import { z } from 'zod';

const place = tool({ description: 'Names a place.', inputSchema: z.object({ city: z.string(), country: z.string() }) });
const { toolCalls } = await generateText({
  model: createOpenAI().chat(process.env.AGL_MODEL),
  prompt: 'Where is the Louvre?',
  tools: { place },
  toolChoice: { type: 'tool', toolName: 'place' },
});
console.log(JSON.stringify(toolCalls[0].input));
