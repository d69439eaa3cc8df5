// All runs: what each trained, how far it is, and what it learned.
import { useEffect, useState } from "preact/hooks";
import type { Evaluated, RunList, RunSummary } from "./api";
import { Sparkline } from "./chart";
import { DASH, duration, interval, number, signed, when } from "./format";
import { Badge, Change, Empty, Loading, Problem, useGet } from "./parts";
import { go, to } from "./router";

export function RunsView({ query }: { query: Record<string, string> }) {
  const { value, error } = useGet<RunList>("runs", {}, 3);
  const [ticked, setTicked] = useState<string[]>([]);
  const [text, setText] = useState(query.text ?? "");
  useEffect(() => { if (text !== (query.text ?? "")) go(to([], { text }), true); }, [text]);
  if (error && !value) return <Problem error={error} />;
  if (!value) return <Loading />;
  const runs = value.runs.filter((run) => `${run.name} ${run.title} ${run.model} ${run.agent}`.toLowerCase().includes(text.toLowerCase()));
  const toggle = (name: string) => setTicked(ticked.includes(name) ? ticked.filter((other) => other !== name) : [...ticked, name].slice(-2));
  const order = (names: string[]) => value.runs.map((run) => run.name).filter((name) => names.includes(name)).reverse();
  const [a, b] = order(ticked);
  return (
    <div class="view">
      <div class="heading">
        <h1>Runs</h1>
        {value.folder && <span class="muted">{value.runs.length} in {value.folder}</span>}
        <span class="grow" />
        {value.runs.length > 0 && <input type="search" placeholder="Filter runs" aria-label="Filter runs" value={text} onInput={(event) => setText(event.currentTarget.value)} />}
        {ticked.length > 0 && (
          <a class="button primary" href={to(["compare"], { a, b })}>{ticked.length === 2 ? "Compare 2 runs" : "Compare with before training"}</a>
        )}
      </div>
      {value.runs.length === 0 && value.stores.length === 0 && (
        <Empty title="No runs yet">Start one with <code>agl train CONFIG.toml</code> or <code>agl demo</code>. It appears here by itself.</Empty>
      )}
      {runs.length > 0 && (
        <div class="card scroll">
          <table class="list">
            <thead>
              <tr>
                <th aria-label="Compare" /><th>Run</th><th>Model</th><th>Steps</th><th>Reward</th>
                <th>Eval, sampled</th><th>Eval, greedy</th><th class="right">Time</th><th class="right">State</th>
              </tr>
            </thead>
            <tbody>{runs.map((run) => <Line key={run.name} run={run} ticked={ticked.includes(run.name)} onTick={() => toggle(run.name)} />)}</tbody>
          </table>
        </div>
      )}
      {value.stores.length > 0 && <Stores stores={value.stores} />}
    </div>
  );
}

function Line({ run, ticked, onTick }: { run: RunSummary; ticked: boolean; onTick: () => void }) {
  const share = run.planned ? Math.min(1, run.steps / run.planned) : 0;
  return (
    <tr class={ticked ? "ticked" : ""}>
      <td class="tick"><input type="checkbox" checked={ticked} onChange={onTick} aria-label={`Compare ${run.name}`} /></td>
      <td>
        <a class="name" href={to(["run", run.name])}>{run.title}</a>
        <div class="sub">{run.name}</div>
      </td>
      <td>{run.model || DASH}<div class="sub">{run.algorithm ?? ""}</div></td>
      <td>
        <span class="num">{run.steps}{run.planned ? <span class="muted"> / {run.planned}</span> : null}</span>
        <div class="progress" aria-hidden="true"><span style={{ width: `${share * 100}%` }} /></div>
      </td>
      <td><Sparkline values={run.curve} /></td>
      <td><EvalChange value={run.eval.sampled} /></td>
      <td><EvalChange value={run.eval.greedy} /></td>
      <td class="right num">{duration(run.seconds)}<div class="sub">{when(run.started)}</div></td>
      <td class="right"><State run={run} /></td>
    </tr>
  );
}

export function State({ run }: { run: RunSummary }) {
  if (run.running) return <Badge tone="accent" live>live</Badge>;
  return <>{run.cause && <Badge tone="warn" title="Why the run does not learn">{run.cause.replaceAll("_", " ")}</Badge>}{!run.cause && <Badge>{run.state}</Badge>}</>;
}

export function EvalChange({ value }: { value?: Evaluated | undefined }) {
  if (!value || (value.before === undefined && value.after === undefined)) return <span class="muted">{DASH}</span>;
  const both = value.before !== undefined && value.after !== undefined;
  return (
    <>
      <span class="num nowrap">
        {value.before !== undefined && <span class={both ? "muted" : ""}>{number(value.before)}</span>}
        {both && <span class="muted"> → </span>}
        {value.after !== undefined && <strong>{number(value.after)}</strong>}
      </span>
      <div class="sub nowrap">
        {both && value.low !== undefined && value.high !== undefined && value.change !== undefined
          ? <Change low={value.low} high={value.high}>{signed(value.change, 2)} {interval(value.low, value.high)}</Change>
          : both ? "too few tasks changed" : "before training"}
      </div>
    </>
  );
}

function Stores({ stores }: { stores: RunList["stores"] }) {
  return (
    <>
      <h2>Stores</h2>
      <div class="card"><table class="list"><tbody>
        {stores.map((store) => (
          <tr key={store.name}>
            <td><a class="name" href={to(["run", store.name, "rollouts"])}>{store.name}</a><div class="sub">rollouts recorded outside a run</div></td>
          </tr>
        ))}
      </tbody></table></div>
    </>
  );
}
