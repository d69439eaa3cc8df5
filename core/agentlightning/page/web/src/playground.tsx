// Ask the served policy, with the model before training beside it. A recorded call fills the form in, and its reply stands beside the new ones.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { get, type Conversation, type Message, type PlaygroundFacts, type RecordedReply, type Served } from "./api";
import { ask, EMPTY, type Answer, type SideName } from "./ask";
import { count, duration, plural, shortId } from "./format";
import { contentText, MessageCard, ToolSchemas } from "./message";
import { Empty, Loading, Problem, useGet } from "./parts";
import { to } from "./router";

type Query = Record<string, string>;
const ROLES = ["system", "user", "assistant", "tool"];
const MOST = 256;
const SHOWN = 4;

interface Draft {
  messages: Message[]; tools: unknown[]; offered: boolean; temperature: string; most: string; top_p: number; top_k: number; stop: string[];
  recorded: RecordedReply[];
}

export function PlaygroundView({ query }: { query: Query }) {
  const { source = "", id = "", call = "" } = query;
  const { value, error } = useGet<PlaygroundFacts>("playground", { source });
  const [draft, setDraft] = useState<Draft | null>(null);
  const [problem, setProblem] = useState<Error | null>(null);
  useEffect(() => {
    if (!value?.served) return;
    const from = call ? { source, id, call } : value.agent;
    if (!from) { setDraft(start(null, false)); return; }
    get<Conversation>("call", from).then((recorded) => setDraft(start(recorded, Boolean(call)))).catch(setProblem);
  }, [value]);
  if (error ?? problem) return <Problem error={(error ?? problem) as Error} />;
  if (!value) return <Loading />;
  if (!value.served) return <div class="view"><div class="heading"><h1>Playground</h1></div><Empty title="No model to ask here">{value.how}</Empty></div>;
  return draft ? <Playground served={value.served} first={draft} query={query} /> : <Loading />;
}

// The form of a recorded call. Of the agent's latest call, it keeps what every question has: instructions, tools and sampling.
function start(recorded: Conversation | null, replay: boolean): Draft {
  const sent = (recorded?.messages ?? []).filter((message) => replay || message.role === "system" || message.role === "developer");
  const { temperature = 1, max_tokens = MOST, top_p = 1, top_k = 0, stop = [] } = recorded?.sampling ?? {};
  return {
    messages: replay ? sent : [...sent, { role: "user", content: "" }], tools: recorded?.tools ?? [], offered: recorded?.offered ?? false,
    temperature: String(temperature), most: max_tokens === null ? "" : String(max_tokens), top_p, top_k, stop, recorded: replay ? (recorded?.replies ?? []) : [],
  };
}

// The body of a chat completion.
function body(draft: Draft, model: string): unknown {
  const most = Number(draft.most);
  return {
    model, messages: draft.messages, temperature: Number(draft.temperature), ...(most > 0 && { max_tokens: most }), top_p: draft.top_p,
    ...(draft.top_k > 0 && { top_k: draft.top_k }), ...(draft.stop.length > 0 && { stop: draft.stop }), ...(draft.offered && draft.tools.length > 0 && { tools: draft.tools }),
    stream: true, stream_options: { include_usage: true },
  };
}

function Playground({ served, first, query }: { served: Served; first: Draft; query: Query }) {
  const [draft, setDraft] = useState(first);
  const [beside, setBeside] = useState(served.base);
  const [answers, setAnswers] = useState<Partial<Record<SideName, Answer>>>({});
  const abort = useRef(new AbortController());
  const loaded = useRef(served.loaded);
  useEffect(() => () => abort.current.abort(), []);
  const running = Object.values(answers).some((answer) => answer?.running);
  const send = () => {
    if (running) return;
    abort.current = new AbortController();
    const sides: SideName[] = beside ? ["policy", "base"] : ["policy"];
    setAnswers(Object.fromEntries(sides.map((side) => [side, EMPTY])));
    requestAnimationFrame(() => document.querySelector(".answers")?.scrollIntoView({ block: "nearest" }));
    for (const side of sides) {
      void ask(side, body(draft, served.model), (answer) => {
        if (side === "base" && !answer.error) loaded.current = true;
        setAnswers((before) => ({ ...before, [side]: answer }));
      }, abort.current.signal);
    }
  };
  const set = (changes: Partial<Draft>) => setDraft({ ...draft, ...changes });
  return (
    <div class="view" onKeyDown={(event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); send(); } }}>
      <div class="heading"><h1>Playground</h1><span class="muted ellipsis" title={served.weights}>{served.model}{served.weights && `, ${served.weights}`}</span></div>
      {query.call && (
        <p class="facts"><span>Replays call <a href={to(["run", query.source ?? "", "rollout", query.id ?? ""], { node: query.call })}>{shortId(query.call)}</a> of rollout {shortId(query.id ?? "")}</span></p>
      )}
      <Form draft={draft} onChange={set} />
      <div class="toolbar">
        {running ? <button type="button" class="button" onClick={() => abort.current.abort()}>Stop</button>
          : <button type="button" class="button primary" onClick={send} title="Ctrl+Enter">Ask</button>}
        {served.base && (
          <label class="check"><input type="checkbox" checked={beside} onChange={(event) => setBeside(event.currentTarget.checked)} />Ask the model before training, too</label>
        )}
        {beside && !loaded.current && <span class="muted small">It loads at the first question, and needs as much memory as the policy.</span>}
        {!served.base && <span class="muted small">These weights were not trained here, so there is no other model to compare.</span>}
      </div>
      <div class="columns answers" aria-live="polite">
        {draft.recorded.map((reply) => <Column key={reply.id} title="Recorded reply"><RecordedAnswer reply={reply} /></Column>)}
        {answers.policy && <Column title={`Policy v${served.version}`}><Reply answer={answers.policy} waiting="Waiting for the first token" /></Column>}
        {answers.base && <Column title="Before training"><Reply answer={answers.base} waiting={loaded.current ? "Waiting for the first token" : "Loading the model"} /></Column>}
      </div>
      <p class="muted small">Tool calls are shown and never executed. Nothing you ask here is recorded, so no run trains on it.</p>
    </div>
  );
}

function Form({ draft, onChange }: { draft: Draft; onChange: (changes: Partial<Draft>) => void }) {
  const hidden = draft.messages.length > SHOWN ? draft.messages.length - SHOWN + 2 : 0;
  const change = (place: number, changes: Partial<Message>) =>
    onChange({ messages: draft.messages.map((message, at) => (at === place ? { ...message, ...changes } : message)) });
  const field = (message: Message, place: number) => (
    <MessageField key={place} message={message} number={place + 1} onChange={(changes) => change(place, changes)}
      onRemove={() => onChange({ messages: draft.messages.filter((_, at) => at !== place) })} />
  );
  return (
    <>
      <div class="messages">
        {hidden > 0 && <details class="fold earlier"><summary>{plural(hidden, "earlier message")}</summary>{draft.messages.slice(0, hidden).map((message, place) => field(message, place))}</details>}
        {draft.messages.slice(hidden).map((message, place) => field(message, place + hidden))}
        {draft.tools.length > 0 && <ToolSchemas tools={draft.tools} />}
      </div>
      <div class="toolbar">
        <button type="button" class="button" onClick={() => onChange({ messages: [...draft.messages, { role: "user", content: "" }] })}>Add message</button>
        {draft.tools.length > 0 && <label class="check"><input type="checkbox" checked={draft.offered} onChange={(event) => onChange({ offered: event.currentTarget.checked })} />Offer the tools</label>}
        <span class="grow" />
        <label class="check">Temperature <input class="narrow" type="number" min="0" step="0.1" value={draft.temperature} onInput={(event) => onChange({ temperature: event.currentTarget.value })} /></label>
        <label class="check">Max tokens <input class="narrow" type="number" min="1" step="1" value={draft.most} placeholder="no limit" onInput={(event) => onChange({ most: event.currentTarget.value })} /></label>
        {draft.top_p < 1 && <button type="button" class="chip removable" onClick={() => onChange({ top_p: 1 })} aria-label="Remove top_p">top_p {draft.top_p} ×</button>}
        {draft.top_k > 0 && <button type="button" class="chip removable" onClick={() => onChange({ top_k: 0 })} aria-label="Remove top_k">top_k {draft.top_k} ×</button>}
        {draft.stop.map((text) => <button key={text} type="button" class="chip removable" onClick={() => onChange({ stop: draft.stop.filter((other) => other !== text) })} aria-label={`Remove stop ${text}`}>stop {JSON.stringify(text)} ×</button>)}
      </div>
    </>
  );
}

function MessageField({ message, number, onChange, onRemove }: { message: Message; number: number; onChange: (changes: Partial<Message>) => void; onRemove: () => void }) {
  const text = contentText(message.content);
  const roles = ROLES.includes(message.role) ? ROLES : [...ROLES, message.role];
  return (
    <div class={`message edited ${message.role}`}>
      <div class="role">
        <select aria-label={`Role of message ${number}`} value={message.role} onChange={(event) => onChange({ role: event.currentTarget.value })}>
          {roles.map((role) => <option key={role}>{role}</option>)}
        </select>
        <span class="grow" />
        <button type="button" class="quiet" onClick={onRemove} aria-label={`Remove message ${number}`}>×</button>
      </div>
      {(text || !message.tool_calls?.length) && <textarea aria-label={`Message ${number}`} rows={Math.min(12, Math.max(2, text.split("\n").length))} value={text} onInput={(event) => onChange({ content: event.currentTarget.value })} />}
      {message.tool_calls && message.tool_calls.length > 0 && <MessageCard message={{ role: "tool calls", tool_calls: message.tool_calls }} />}
    </div>
  );
}

function Column({ title, children }: { title: string; children: ComponentChildren }) {
  return <article class="column" aria-label={title}><header><strong>{title}</strong></header>{children}</article>;
}

function RecordedAnswer({ reply }: { reply: RecordedReply }) {
  return <><MessageCard message={reply.message as Message} reply={{ finish: reply.finish, advantage: null }} /><p class="facts">{count(reply.prompt)} + {plural(reply.sampled, "token")}</p></>;
}

function Reply({ answer, waiting }: { answer: Answer; waiting: string }) {
  const message: Message = { role: "assistant", content: answer.text, tool_calls: answer.calls, reasoning_content: answer.reasoning };
  const empty = !answer.text && !answer.reasoning && answer.calls.length === 0;
  return (
    <>
      {answer.running && empty ? <p class="muted" role="status"><span class="spinner" aria-hidden="true" /> {waiting}</p>
        : answer.error && empty ? null : <MessageCard message={message} reply={{ finish: answer.finish, advantage: null }} />}
      {answer.error && <div class="callout bad" role="alert"><p>{answer.error}</p></div>}
      <p class="facts">
        {answer.sampled !== null && <span>{count(answer.prompt ?? 0)} + {plural(answer.sampled, "token")}</span>}
        {!answer.running && <span>{duration(answer.seconds)}</span>}
      </p>
    </>
  );
}
