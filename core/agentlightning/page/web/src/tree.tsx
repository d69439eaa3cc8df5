// The tree of an attempt, with a timeline: each node has a bar at its time.
import { useEffect, useRef } from "preact/hooks";
import type { Attempt, Node } from "./api";
import { duration, number, plural } from "./format";
import { Advantage } from "./parts";

const GLYPHS: Record<string, string> = { agent: "◆", call: "●", tool: "▲", note: "✎", llm: "○" };
const NAMES: Record<string, string> = { agent: "agent", call: "model call", tool: "tool", note: "note", llm: "model call outside the gateway" };

export function flat(nodes: Node[]): Node[] {
  return nodes.flatMap((node) => [node, ...flat(node.children)]);
}

export function Tree({ attempt, selected, onSelect }: { attempt: Attempt; selected: string; onSelect: (node: Node) => void }) {
  const nodes = flat(attempt.nodes);
  const times = nodes.flatMap((node) => [node.started, node.ended ?? node.started]).filter((time) => time > 0);
  const from = Math.min(...times), until = Math.max(...times, from + 1e-6);
  return (
    <>
      {times.length > 0 && <div class="axis" aria-hidden="true"><span>0</span><span>{duration(until - from)}</span></div>}
      <ul class="tree" role="tree" aria-label={`Attempt ${attempt.number}`}>
        {attempt.nodes.map((node) => <Branch key={node.id} node={node} level={1} from={from} span={until - from} selected={selected} onSelect={onSelect} />)}
        {nodes.length === 0 && <li class="muted" role="none">No model call reached the gateway.</li>}
      </ul>
    </>
  );
}

interface BranchProps { node: Node; level: number; from: number; span: number; selected: string; onSelect: (node: Node) => void }

function Branch({ node, level, from, span, selected, onSelect }: BranchProps) {
  const here = node.id === selected;
  const line = useRef<HTMLButtonElement>(null);
  useEffect(() => { if (here) line.current?.scrollIntoView({ block: "nearest" }); }, [here]);
  const start = Math.max(0, (100 * (node.started - from)) / span);
  const width = Math.max(1.5, (100 * ((node.ended ?? node.started) - node.started)) / span);
  const seconds = node.ended === null ? "" : duration(node.ended - node.started);
  return (
    <li role="treeitem" aria-level={level} aria-selected={here} aria-label={`${NAMES[node.kind]} ${node.name}`}>
      <button ref={line} type="button" class={`node ${node.kind}`} style={{ paddingLeft: `${8 + (level - 1) * 16}px` }} onClick={() => onSelect(node)} aria-current={here ? "true" : undefined} title={`${NAMES[node.kind]} ${node.name}, ${seconds}`}>
        <span class="glyph" aria-hidden="true">{GLYPHS[node.kind]}</span>
        <span class="node-name">{node.name}{note(node) && <span class="sub"> {note(node)}</span>}</span>
        {node.replies?.map((reply) => <Advantage key={reply.id} value={reply.advantage} />)}
        {node.rewards.map((reward) => <span key={reward.name} class="chip star" title={`reward ${reward.name} from ${reward.source}`}>★ {number(reward.value, 2)}</span>)}
        <span class="track" aria-hidden="true">{node.started > 0 && node.kind !== "note" && <span class="span" style={{ left: `${Math.min(start, 98.5)}%`, width: `${Math.min(width, 100 - Math.min(start, 98.5))}%` }} />}</span>
      </button>
      {node.children.length > 0 && (
        <ul role="group">{node.children.map((child) => <Branch key={child.id} node={child} level={level + 1} from={from} span={span} selected={selected} onSelect={onSelect} />)}</ul>
      )}
    </li>
  );
}

function note(node: Node): string {
  if (node.kind === "tool") return node.attributes?.error ? "failed" : "";
  if (node.kind !== "call") return "";
  if (node.status !== "completed") return node.status ?? "";
  const tokens = (node.replies ?? []).reduce((sum, reply) => sum + reply.sampled, 0);
  return plural(tokens, "token");
}
