// One rollout: the tree of what happened on the left; what one node holds on the right.
import { useMemo } from "preact/hooks";
import type { Attempt, Detail, Node } from "./api";
import { CallPanel } from "./call";
import { count, duration, json, number, plural, shortId, signed } from "./format";
import { Badge, Loading, Problem, RewardCell, Stat, Status, useGet, useKeys } from "./parts";
import { go, to } from "./router";
import { flat, Tree } from "./tree";

type Query = Record<string, string>;

export function RolloutView({ source, id, query }: { source: string; id: string; query: Query }) {
  const { value, error } = useGet<Detail>("rollout", { source, id });
  if (error && !value) return <Problem error={error} />;
  return value ? <Shown detail={value} source={source} query={query} /> : <Loading />;
}

function Shown({ detail, source, query }: { detail: Detail; source: string; query: Query }) {
  const { row } = detail;
  const nodes = useMemo(() => detail.attempts.flatMap((attempt) => flat(attempt.nodes)), [detail]);
  const winner = detail.attempts.find((attempt) => attempt.id === detail.winner) ?? detail.attempts.at(-1);
  const first = flat(winner?.nodes ?? []).find((node) => node.kind === "call");
  const selected = nodes.find((node) => node.id === query.node) ?? first ?? nodes[0];
  const select = (node: Node) => go(to(["run", source, "rollout", row.id], { ...query, node: node.id }), true);
  const move = (by: number) => {
    const next = nodes[nodes.findIndex((node) => node.id === selected?.id) + by];
    if (next) select(next);
  };
  const view = query.view === "tokens" ? "tokens" : "messages";
  const show = (next: string) => go(to(["run", source, "rollout", row.id], { ...query, node: selected?.id, view: next === "tokens" ? next : null }), true);
  useKeys({ j: () => move(1), k: () => move(-1), t: () => show(view === "tokens" ? "messages" : "tokens") });
  return (
    <div class="view">
      <Head detail={detail} source={source} query={query} />
      <div class="panes">
        <aside class="pane outline" aria-label="What happened">
          {detail.attempts.map((attempt) => (
            <AttemptTree key={attempt.id} attempt={attempt} alone={detail.attempts.length === 1} counts={attempt.id === detail.winner} selected={selected?.id ?? ""} onSelect={select} />
          ))}
          {detail.attempts.length === 0 && <p class="muted">No runner has taken this rollout yet.</p>}
          <Excluded detail={detail} />
        </aside>
        <section class="pane content" aria-label="Selected node">
          {selected === undefined ? <p class="muted">Nothing was recorded.</p>
            : selected.kind === "call"
              ? <CallPanel key={selected.id} node={selected} detail={detail} source={source} view={view} query={query} onView={show} />
              : <SpanPanel node={selected} />}
        </section>
      </div>
    </div>
  );
}

function Head({ detail, source, query }: { detail: Detail; source: string; query: Query }) {
  const { row } = detail;
  return (
    <>
      <div class="heading">
        <h1 class="clamp" title={row.start}>{row.start}</h1>
        <Status status={row.status} />
        <span class="grow" />
        {row.group && <Neighbours source={source} group={row.group} id={row.id} query={query} />}
      </div>
      <div class="stats compact">
        <Stat label="Reward"><RewardCell value={row.reward} /></Stat>
        {row.advantage !== null && <Stat label="Advantage" title="mean over its trained replies"><span class={row.advantage > 0 ? "good-text" : row.advantage < 0 ? "bad-text" : ""}>{signed(row.advantage, 2)}</span></Stat>}
        <Stat label="Task">{row.task}</Stat>
        <Stat label="Mode">{row.mode}{row.step !== null && `, step ${row.step}`}</Stat>
        <Stat label="Sampling">{row.sampling}{typeof detail.settings?.temperature === "number" && row.sampling === "sampled" && ` at ${detail.settings.temperature}`}</Stat>
        <Stat label="Calls">{row.calls}{row.tools > 0 && `, ${plural(row.tools, "tool call")}`}</Stat>
        <Stat label="Tokens">{count(row.trained)} of {count(row.tokens)} trained</Stat>
        <Stat label="Time">{duration(row.seconds)}</Stat>
      </div>
    </>
  );
}

// The rollouts before and after this one in its group.
function Neighbours({ source, group, id, query }: { source: string; group: string; id: string; query: Query }) {
  const { value } = useGet<{ rows: { id: string; index: number }[] }>("rollouts", { source, group });
  const rows = [...(value?.rows ?? [])].sort((one, other) => one.index - other.index);
  const place = rows.findIndex((row) => row.id === id);
  const step = (by: number) => {
    const next = rows[place + by];
    if (next) go(to(["run", source, "rollout", next.id], { view: query.view }));
  };
  useKeys({ "[": () => step(-1), "]": () => step(1) });
  if (rows.length < 2) return null;
  return (
    <span class="neighbours">
      <button type="button" class="button" disabled={place <= 0} onClick={() => step(-1)} aria-label="Previous rollout of the group">‹</button>
      <a class="button" href={to(["run", source, "group", group], { at: id })}>{place + 1} of {rows.length} in its group</a>
      <button type="button" class="button" disabled={place < 0 || place === rows.length - 1} onClick={() => step(1)} aria-label="Next rollout of the group">›</button>
    </span>
  );
}

function AttemptTree({ attempt, alone, counts, selected, onSelect }: { attempt: Attempt; alone: boolean; counts: boolean; selected: string; onSelect: (node: Node) => void }) {
  return (
    <div class="attempt">
      {(!alone || attempt.error) && (
        <div class="attempt-head">Attempt {attempt.number} <Status status={attempt.status} />{!counts && !alone && <span class="muted">not the winning attempt</span>}{attempt.error && <p class="bad-text">{attempt.error}</p>}</div>
      )}
      <Tree attempt={attempt} selected={selected} onSelect={onSelect} />
      {attempt.rewards.map((reward) => (
        <div key={reward.name} class="reward-line"><span class="glyph reward-glyph" aria-hidden="true">★</span>{reward.name} <strong class="num">{number(reward.value, 2)}</strong><span class="muted"> from {reward.source}</span></div>
      ))}
    </div>
  );
}

function Excluded({ detail }: { detail: Detail }) {
  const { row } = detail;
  if (row.excluded.length === 0 && detail.notes.length === 0) return null;
  return (
    <div class="excluded">
      {row.excluded.length > 0 && <h3>Not trained</h3>}
      <ul>{row.excluded.map(([reason, tokens]) => <li key={reason}><span class="num">{count(tokens)}</span> {tokens === 1 ? "token" : "tokens"}: {reason}</li>)}</ul>
      {detail.notes.length > 0 && <h3>Notes</h3>}
      <ul>{detail.notes.map((note) => <li key={note}>{note}</li>)}</ul>
    </div>
  );
}

const KINDS: Record<string, string> = { agent: "Agent", tool: "Tool", note: "Note", llm: "Model call that did not reach the gateway" };

function SpanPanel({ node }: { node: Node }) {
  const attributes = Object.entries(node.attributes ?? {});
  return (
    <>
      <div class="panel-head">
        <h2>{KINDS[node.kind] ?? node.kind}: {node.name}</h2>
        {node.agent && node.agent !== node.name && <Badge>{node.agent}</Badge>}
        <span class="grow" />
        {node.ended !== null && <span class="muted num">{duration(node.ended - node.started)}</span>}
      </div>
      {node.rewards.map((reward) => <p key={reward.name}>Reward {reward.name} <strong class="num">{signed(reward.value, 2)}</strong> <span class="muted">from {reward.source}</span></p>)}
      {attributes.map(([name, value]) => (
        <div key={name} class={`message ${name === "error" ? "error" : ""}`}><div class="role">{name}</div><pre>{json(value)}</pre></div>
      ))}
      {attributes.length === 0 && <p class="muted">Nothing more was recorded here. Its children have the details.</p>}
      <p class="muted small">id {shortId(node.id)}</p>
    </>
  );
}

