// One model call: its messages and tools and reply, or its exact tokens.
import type { Conversation, Detail, Message, Node, Reply } from "./api";
import { count, duration, plural, signed } from "./format";
import { MessageCard, ToolSchemas } from "./message";
import { Choice, Loading, Problem, Status, useGet } from "./parts";
import { to } from "./router";
import { TokensPanel } from "./tokens";

type Query = Record<string, string>;
const SHOWN = 6;

export function CallPanel({ node, detail, source, view, query, onView }: { node: Node; detail: Detail; source: string; view: "messages" | "tokens"; query: Query; onView: (view: string) => void }) {
  const replies = node.replies ?? [];
  return (
    <>
      <div class="panel-head">
        <h2>{node.name}</h2>
        <span class="muted">call {(node.index ?? 0) + 1}</span>
        {node.status !== "completed" && <Status status={node.status ?? ""} />}
        <span class="grow" />
        {node.replayable && <a class="button" href={to(["playground"], { source, id: detail.row.id, call: node.id })} title="Ask this again in the playground">Replay</a>}
        <Choice label="What to show" value={view} onChange={onView} options={[["messages", "Messages"], ["tokens", "Exact tokens"]]} />
      </div>
      <p class="facts">
        {node.ended !== null && <span>{duration(node.ended - node.started)}</span>}
        {node.context && <span title="how the prompt continues earlier calls">prompt {node.context}</span>}
        {replies.slice(0, 1).map((reply) => <span key={reply.id}>{count(reply.prompt)} + {plural(reply.sampled, "token")}</span>)}
        {replies.slice(0, 1).map((reply) => <span key={reply.id}>{reply.policy} v{reply.versions.join(", v") || "–"}</span>)}
      </p>
      {node.detail && <div class="callout bad"><strong>{node.status}</strong><p>{node.detail}</p></div>}
      {node.retried && <div class="callout warn"><p>The client retried this call, so it is not trained.</p></div>}
      {view === "tokens"
        ? replies.map((reply) => <TokensPanel key={reply.id} reply={reply} detail={detail} source={source} query={query} />)
        : <Messages node={node} detail={detail} source={source} />}
      {view === "tokens" && replies.length === 0 && <p class="muted">This call has no reply.</p>}
    </>
  );
}

function Messages({ node, detail, source }: { node: Node; detail: Detail; source: string }) {
  const { value, error } = useGet<Conversation>("call", { source, id: detail.row.id, call: node.id });
  if (error) return <Problem error={error} />;
  if (!value) return <Loading />;
  const messages = value.messages ?? [];
  const hidden = messages.length > SHOWN ? messages.slice(0, messages.length - SHOWN + 2) : [];
  const rest = messages.slice(hidden.length);
  return (
    <div class="messages">
      {value.tools && value.tools.length > 0 && <ToolSchemas tools={value.tools} />}
      {value.missing && <p class="muted">{value.missing}</p>}
      {hidden.length > 0 && <details class="fold"><summary>{plural(hidden.length, "earlier message")}</summary>{hidden.map((message, place) => <MessageCard key={place} message={message} />)}</details>}
      {rest.map((message, place) => <MessageCard key={place} message={message} />)}
      {value.replies.map((entry) => {
        const reply = node.replies?.find((other) => other.id === entry.id);
        return <div key={entry.id} class="reply"><MessageCard message={entry.message as Message} reply={reply} />{reply && <Learned reply={reply} />}</div>;
      })}
    </div>
  );
}

function Learned({ reply }: { reply: Reply }) {
  return (
    <p class="learned">
      {reply.trained
        ? <>Trained with advantage <strong class="num">{signed(reply.advantage, 3)}</strong>{reply.return !== null && <> from return <strong class="num">{signed(reply.return, 3)}</strong></>}.</>
        : reply.reason ? <span class="warn-text">Not trained: {reply.reason}.</span> : <span class="muted">Not trained.</span>}
      {reply.problem && <span class="bad-text"> Broken tool call: {reply.problem}</span>}
      {reply.demonstrated && <span class="muted"> Demonstrated, not sampled.</span>}
    </p>
  );
}
