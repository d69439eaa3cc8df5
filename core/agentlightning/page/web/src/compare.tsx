// Two runs on the same eval tasks, paired by task.
import type { Comparison, EvalTasks, Kind } from "./api";
import { count, interval, number, plural, signed } from "./format";
import { Change, Choice, Empty, Loading, Problem, useGet } from "./parts";
import { go, to } from "./router";

type Query = Record<string, string>;
const SHOWN = 100;

export function CompareView({ a, b, query }: { a: string; b: string; query: Query }) {
  const { value, error } = useGet<Comparison>("compare", { a, b });
  if (error) return <Problem error={error} />;
  if (!value) return <Loading />;
  const kinds = Object.keys(value.kinds);
  const kind = query.kind && kinds.includes(query.kind) ? query.kind : (kinds.at(-1) ?? "");
  const chosen = value.kinds[kind];
  const [before, after] = value.sides;
  return (
    <div class="view">
      <div class="heading"><h1>Compare</h1></div>
      <div class="sides">
        <Side label="A" side={before} /><span class="muted" aria-hidden="true">→</span><Side label="B" side={after} />
      </div>
      <div class="card scroll">
        <table class="list">
          <thead><tr><th>Eval tasks</th><th class="right">A</th><th class="right">B</th><th>Change, 95% interval</th><th /><th class="right">Won</th><th class="right">Lost</th><th class="right">Same</th></tr></thead>
          <tbody>{kinds.map((name) => <Line key={name} name={name} kind={value.kinds[name] as Kind} />)}</tbody>
        </table>
      </div>
      {chosen && <Tasks kind={kind} kinds={kinds} chosen={chosen} value={value} query={query} />}
    </div>
  );
}

function Side({ label, side }: { label: string; side: Comparison["sides"][number] | undefined }) {
  if (!side) return null;
  return <span class="side"><span class="letter">{label}</span>{side.run ? <a href={to(["run", side.run])}>{side.name}</a> : side.name}</span>;
}

function Line({ name, kind }: { name: string; kind: Kind }) {
  const { low, high, mean, pairs } = kind.interval;
  const verdict = kind.changed < 6 ? "too few tasks changed to tell" : low > 0 ? "B is better" : high < 0 ? "B is worse" : "no difference beyond chance";
  return (
    <tr>
      <td>{name}<div class="sub">{plural(pairs, "task")}</div></td>
      <td class="right num">{number(kind.before)}</td><td class="right num">{number(kind.after)}</td>
      <td class="nowrap"><Change low={low} high={high}><strong class="num">{signed(mean)}</strong> <span class="num">{interval(low, high)}</span></Change><div class="sub">{verdict}</div></td>
      <td class="fill"><IntervalBar low={low} high={high} mean={mean} /></td>
      <td class="right num good-text">{kind.won}</td><td class="right num bad-text">{kind.lost}</td><td class="right num muted">{pairs - kind.won - kind.lost}</td>
    </tr>
  );
}

function IntervalBar({ low, high, mean }: { low: number; high: number; mean: number }) {
  const reach = Math.max(Math.abs(low), Math.abs(high), 0.05) * 1.15;
  const x = (value: number) => 80 + (value / reach) * 78;
  return (
    <svg class="interval" viewBox="0 0 160 20" width="160" height="20" role="img" aria-label={`from ${signed(low)} to ${signed(high)}`}>
      <line class="zero" x1="80" y1="1" x2="80" y2="19" />
      <line class="range" x1={x(low)} y1="10" x2={x(high)} y2="10" />
      <circle cx={x(mean)} cy="10" r="4" />
    </svg>
  );
}

function Tasks({ kind, kinds, chosen, value, query }: { kind: string; kinds: string[]; chosen: Kind; value: Comparison; query: Query }) {
  const which = (["won", "lost", "all"].includes(query.tasks ?? "") ? query.tasks : chosen.lost ? "lost" : "won") as "won" | "lost" | "all";
  const tasks = chosen.tasks.filter(([, old, now]) => which === "all" || (which === "won" ? now > old : now < old));
  const set = (changes: Query) => go(to(["compare"], { ...query, ...changes }), true);
  const before = useSide(value.sides[0], kind), after = useSide(value.sides[1], kind);
  const problem = before.error ?? after.error;
  return (
    <>
      <div class="toolbar">
        <Choice label="Tasks" value={which} onChange={(tasks) => set({ tasks })} options={[["lost", `Lost ${chosen.lost}`], ["won", `Won ${chosen.won}`], ["all", `All ${chosen.tasks.length}`]]} />
        {kinds.length > 1 && <Choice label="Sampling" value={kind} onChange={(next) => set({ kind: next })} options={kinds.map((name) => [name, name])} />}
        {problem && <span class="warn-text small">{problem.message}</span>}
      </div>
      {tasks.length === 0 ? <Empty title={which === "lost" ? "No task was lost." : "No task was won."} /> : (
        <div class="card scroll">
          <table class="list compared">
            <thead><tr><th>Task</th><th class="right">A</th><th class="right">B</th><th class="right">Change</th><th>Rollouts</th></tr></thead>
            <tbody>
              {tasks.slice(0, SHOWN).map(([task, old, now]) => (
                <tr key={task}>
                  <td class="task"><div>{(after.value ?? before.value)?.tasks[task]?.start ?? task}</div><div class="sub">{task}</div></td>
                  <td class="right num">{number(old, 2)}</td><td class="right num">{number(now, 2)}</td>
                  <td class={`right num ${now > old ? "good-text" : now < old ? "bad-text" : "muted"}`}>{signed(now - old, 2)}</td>
                  <td class="nowrap"><Open letter="A" side={before.value} task={task} /><Open letter="B" side={after.value} task={task} /></td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      {tasks.length > SHOWN && <p class="muted small">The {SHOWN} largest changes of {count(tasks.length)} are shown.</p>}
    </>
  );
}

// The tasks and rollouts of one side. A side outside this folder has none.
function useSide(side: Comparison["sides"][number] | undefined, kind: string): { value: EvalTasks | null; error: Error | null } {
  const { value, error } = useGet<EvalTasks>("eval", { source: side?.run, step: side?.step, kind });
  return { value, error: side?.run ? error : null };
}

// Links to the rollouts of a task.
function Open({ letter, side, task }: { letter: string; side: EvalTasks | null; task: string }) {
  const ids = side?.tasks[task]?.ids ?? [];
  if (!side || ids.length === 0) return null;
  return (
    <span class="opener">
      {ids.map((id, place) => <a key={id} class="button small" href={to(["run", side.run, "rollout", id])}>Open {letter}{ids.length > 1 && ` ${place + 1}`}</a>)}
    </span>
  );
}
