// A question to a model, and its reply as it streams in.

export type SideName = "policy" | "base";
export interface ToolUse { function: { name: string; arguments: string } }
export interface Answer {
  text: string; reasoning: string; calls: ToolUse[]; finish: string; prompt: number | null; sampled: number | null; seconds: number;
  running: boolean; error: string;
}
export const EMPTY: Answer = { text: "", reasoning: "", calls: [], finish: "", prompt: null, sampled: null, seconds: 0, running: true, error: "" };

interface Chunk {
  error?: { message: string };
  usage?: { prompt_tokens: number; completion_tokens: number } | null;
  choices?: { finish_reason: string | null; delta: { content?: string | null; reasoning_content?: string | null; tool_calls?: { index: number; function?: { name?: string; arguments?: string } }[] } }[];
}

// Ask one model. `onAnswer` gets the reply after each piece. Errors of the gateway are part of the answer.
export async function ask(side: SideName, body: unknown, onAnswer: (answer: Answer) => void, signal: AbortSignal): Promise<void> {
  const began = performance.now();
  let answer = EMPTY;
  const set = (changes: Partial<Answer>) => onAnswer((answer = { ...answer, ...changes, seconds: (performance.now() - began) / 1000 }));
  try {
    const response = await fetch(`/view/api/ask/${side}`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal });
    if (response.status === 401) dispatchEvent(new Event("signed-out"));
    if (!response.ok || !response.body) throw new Error(message(await response.json().catch(() => null), response.status));
    for await (const chunk of chunks(response.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      set(grown(answer, chunk));
    }
    set({ running: false });
  } catch (error) {
    set({ running: false, error: signal.aborted ? "Stopped." : (error as Error).message });
  }
}

function message(body: unknown, status: number): string {
  const error = (body as { error?: string | { message?: string } } | null)?.error;
  return (typeof error === "string" ? error : error?.message) ?? `The server answered ${status}.`;
}

function grown(answer: Answer, chunk: Chunk): Partial<Answer> {
  const choice = chunk.choices?.[0], delta = choice?.delta;
  const calls = [...answer.calls];
  for (const part of delta?.tool_calls ?? []) {
    const call = calls[part.index]?.function ?? { name: "", arguments: "" };
    calls[part.index] = { function: { name: call.name + (part.function?.name ?? ""), arguments: call.arguments + (part.function?.arguments ?? "") } };
  }
  return {
    text: answer.text + (delta?.content ?? ""), reasoning: answer.reasoning + (delta?.reasoning_content ?? ""), calls,
    finish: choice?.finish_reason ?? answer.finish, prompt: chunk.usage?.prompt_tokens ?? answer.prompt, sampled: chunk.usage?.completion_tokens ?? answer.sampled,
  };
}

// The events of a stream, up to its end mark.
async function* chunks(body: ReadableStream<Uint8Array>): AsyncGenerator<Chunk> {
  const reader = body.getReader(), decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    rest += decoder.decode(value, { stream: !done });
    const events = rest.split("\n\n");
    rest = events.pop() ?? "";
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data && data !== "[DONE]") yield JSON.parse(data) as Chunk;
    }
    if (done) return;
  }
}
