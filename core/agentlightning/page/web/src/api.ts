// What the server answers, and how the page asks for it.

export interface Evaluated { before?: number; after?: number; step?: number; change?: number; low?: number; high?: number }
export interface RunSummary {
  name: string; title: string; model: string; agent: string; algorithm: string | null; engine: string | null; trainer: string | null;
  steps: number; planned: number | null; started: number | null; seconds: number | null; state: string; running: boolean;
  cause: string | null; best: number | null; reward: number | null; curve: number[]; eval: Record<string, Evaluated>;
}
export interface RunList { runs: RunSummary[]; stores: { name: string; address: string }[]; folder: string | null; start: string }
export type Columns = Record<string, (number | null)[]>;
export interface RunView {
  run: RunSummary; queue: { running: number; queued: number } | null; columns: Columns; time: Record<string, number>;
  diagnosis: { cause: string; evidence: string; remedy: string } | null; choice: { step: number; reason: string } | null;
  reused: { step: number; kind: string; run: string }[];
  policies: string[]; prompts: Search | null; stages: Stages | null;
}
export interface Candidate { parent: number | null; step: number; score: number; changed: { name: string; version: string; text: string }[] }
export interface Search {
  best: { name: string; text: string; own: boolean }[]; candidate: number; candidates: Candidate[];
  rollouts: number; tokens: number; rejected: number; unscored: number;
}
export interface Stage { before: number; prompts: Interval; weights?: Interval; after_weights?: number }
export interface Stages { title: string; run: string | null; kinds: Record<string, Stage> }
export interface Setting { name: string; value: string; default: string | null; differs: boolean; required: boolean; text: string }
export interface Section { title: string; settings: Setting[] }
export interface Row {
  id: string; task: string; start: string; mode: string; sampling: string; step: number | null; group: string | null; index: number;
  status: string; error: string | null; attempts: number; reward: number | null; advantage: number | null; calls: number; tools: number;
  tokens: number; trained: number; excluded: [string, number][]; reason: string | null; seconds: number | null; created: number;
}
export interface Page { rows: Row[]; cursor: string | null; searched: number }
export interface Reward { name: string; value: number; source: string }
export interface Reply {
  id: string; choice: number; prompt: number; sampled: number; finish: string; versions: number[]; logprob: number | null;
  temperature: number; return: number | null; advantage: number | null; trained: boolean; reason: string | null; problem: string | null;
  missing: string | null; demonstrated: boolean; policy: string; renderer: string;
}
export interface Node {
  id: string; kind: "agent" | "tool" | "note" | "llm" | "call"; name: string; agent: string | null; started: number; ended: number | null;
  rewards: Reward[]; children: Node[]; attributes?: Record<string, unknown>;
  index?: number; status?: string; detail?: string | null; context?: string | null; tools?: number; retried?: string | null; replies?: Reply[]; replayable?: boolean;
}
export interface Attempt {
  id: string; number: number; status: string; worker: string; error: string | null; started: number; finished: number | null;
  rewards: Reward[]; nodes: Node[]; has_spans: boolean;
}
export interface Detail {
  row: Row; input: unknown; policy: string; settings: Record<string, unknown> | null; attempts: Attempt[]; winner: string | null;
  notes: string[]; text: boolean;
}
export interface Message { role: string; content?: unknown; tool_calls?: unknown[]; tool_call_id?: string; name?: string; reasoning_content?: unknown }
export interface SamplingSettings { temperature: number; top_p: number; top_k: number; max_tokens: number | null; stop: string[] }
export interface RecordedReply { id: string; message: unknown; finish: string; prompt: number; sampled: number }
export interface Conversation {
  messages: Message[] | null; missing: string | null; tools: unknown[] | null; offered: boolean; sampling: SamplingSettings | null;
  replies: RecordedReply[];
}
export interface Served { model: string; version: number; weights: string; base: boolean; loaded: boolean }
export interface PlaygroundFacts { served: Served | null; how: string | null; agent: { source: string; id: string; call: string } | null }
export interface Tokens {
  prompt: { ids: number[]; texts: string[] }; response: { ids: number[]; texts: string[] };
  logprobs: (number | null)[] | null; versions: number[]; decoded: boolean;
  trainer: { logprobs: (number | null)[]; version: number } | null;
}
export interface Group {
  group: string; task: string; input: unknown; common: number | null; more: boolean;
  rollouts: { row: Row; replies: { call: string; text: string }[] }[];
}
export interface Interval { mean: number; low: number; high: number; pairs: number; unpaired: number }
export interface Kind {
  before: number; after: number; won: number; lost: number; interval: Interval; changed: number; tasks: [string, number, number][];
}
export interface Comparison {
  sides: { name: string; run: string | null; step: number }[]; kinds: Record<string, Kind>; both: { interval: Interval; changed: number };
}
export interface EvalTasks { run: string; tasks: Record<string, { start: string; ids: string[] }> }

export class ApiError extends Error {
  constructor(message: string, readonly status: number) { super(message); }
}

export async function get<T>(name: string, query: Record<string, string | number | null | undefined> = {}, signal?: AbortSignal): Promise<T> {
  const response = await fetch(`/view/api/${name}?${search(query)}`, { signal: signal ?? null });
  const body = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
  if (!response.ok) throw new ApiError(body.error, response.status);
  return body as T;
}

export async function login(token: string): Promise<void> {
  const response = await fetch("/view/login", { method: "POST", body: token });
  if (!response.ok) throw new ApiError((await response.json()).error, response.status);
}

// The view of a run, now and after each of its changes.
export function watch(source: string, onView: (view: RunView) => void, onState: (open: boolean) => void): () => void {
  const events = new EventSource(`/view/api/events?${search({ source })}`);
  events.onmessage = (event) => { onState(true); onView(JSON.parse(event.data)); };
  events.onerror = () => onState(false);
  return () => events.close();
}

export function search(query: Record<string, string | number | null | undefined>): string {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) if (value !== null && value !== undefined && value !== "") parameters.set(name, String(value));
  return parameters.toString();
}
