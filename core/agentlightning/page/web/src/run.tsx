// One run, live: its state, its curves, its diagnosis, and its settings.
import { useEffect, useMemo, useState } from "preact/hooks";
import { watch, type Columns, type RunView } from "./api";
import { Chart, type Series } from "./chart";
import { DASH, count, duration, number, plural, short } from "./format";
import { Badge, Loading, Problem, Stat, Tabs } from "./parts";
import { Contributions, Prompts } from "./prompts";
import { go, to } from "./router";
import { EvalChange, State } from "./runs";
import { Settings } from "./settings";

export function RunPage({ name, tab, theme }: { name: string; tab: "overview" | "settings"; theme: string }) {
  const [view, setView] = useState<RunView | null>(null);
  const [open, setOpen] = useState(true);
  useEffect(() => {
    setView(null);
    return watch(name, setView, setOpen);
  }, [name]);
  if (!view) return open ? <Loading /> : <Problem error={new Error(`There is no run ${name}, or the server has stopped.`)} />;
  return (
    <div class="view">
      <RunHead view={view} name={name} tab={tab} open={open} />
      {tab === "settings" ? <Settings name={name} /> : <Overview view={view} name={name} theme={theme} />}
    </div>
  );
}

function RunHead({ view, name, tab, open }: { view: RunView; name: string; tab: string; open: boolean }) {
  const { run } = view;
  return (
    <>
      <div class="heading">
        <h1>{run.title}</h1>
        <State run={run} />
        {!open && <Badge tone="bad">disconnected</Badge>}
        <span class="grow" />
        {(run.eval.sampled ?? run.eval.greedy)?.after !== undefined && <a class="button" href={to(["compare"], { a: name })}>Compare with before training</a>}
      </div>
      <p class="facts">
        {[run.model, run.agent, run.algorithm, run.trainer && `trained with ${run.trainer}`].filter(Boolean).map((fact) => <span key={fact}>{fact}</span>)}
      </p>
      <Tabs label="Views of the run" current={tab} tabs={[
        { id: "overview", name: "Overview", href: to(["run", name]) },
        { id: "rollouts", name: "Rollouts", href: to(["run", name, "rollouts"]) },
        { id: "settings", name: "Settings", href: to(["run", name, "settings"]) },
      ]} />
    </>
  );
}

function Overview({ view, name, theme }: { view: RunView; name: string; theme: string }) {
  const { run, queue, diagnosis, choice } = view;
  const kept = view.prompts ? "prompts" : "weights";
  const speed = view.columns.tokens_per_second?.findLast((value) => value !== null) ?? null;
  return (
    <>
      <div class="stats">
        <Stat label="Step" note={run.planned && <div class="progress"><span style={{ width: `${Math.min(1, run.steps / run.planned) * 100}%` }} /></div>}>
          {count(run.steps)}{run.planned ? <span class="muted"> / {count(run.planned)}</span> : null}
        </Stat>
        <Stat label="Training reward" note="last step">{number(run.reward)}</Stat>
        <div class="stat"><span class="label">Eval, sampled</span><span class="value"><EvalChange value={run.eval.sampled} /></span></div>
        <div class="stat"><span class="label">Eval, greedy</span><span class="value"><EvalChange value={run.eval.greedy} /></span></div>
        <Stat label="Sampling" note="tokens per second">{short(speed)}</Stat>
        <Stat label="Time" note={queue ? `${plural(queue.running, "rollout")} running, ${queue.queued} waiting` : null}>{duration(run.seconds)}</Stat>
      </div>
      {diagnosis && (
        <div class="callout warn" role="status">
          <strong>Not learning: {diagnosis.cause.replaceAll("_", " ")}</strong>
          <p>{diagnosis.evidence}</p><p>{diagnosis.remedy}</p>
        </div>
      )}
      {choice && <p class="choice"><strong>{choice.step === 0 ? `The ${kept} before training are kept.` : `The ${kept} of step ${choice.step} are kept.`}</strong> <span class="muted">{choice.reason}</span></p>}
      {(view.columns.step?.length ?? 0) > 0 && <Charts view={view} name={name} theme={theme} />}
      {((view.columns.step as number[] | undefined)?.at(-1) ?? 0) === 0 && (
        <p class="muted">{run.running ? "The first step has not ended yet. Its numbers appear here when it does." : "No step of this run has ended."}</p>
      )}
      {view.stages && <Contributions stages={view.stages} />}
      {view.prompts && <Prompts search={view.prompts} />}
      {Object.keys(view.time).length > 0 && <WhereTimeGoes time={view.time} total={run.seconds} />}
    </>
  );
}

// `each`: several policies have a line each.
interface Spec { title: string; help: string; each?: boolean; lines: [string, string, Partial<Series>?][] }

const CHARTS: Spec[] = [
  { title: "Reward", help: "mean of a step’s training rollouts, and of the eval tasks", lines: [["reward", "training", { color: "soft" }], ["eval.sampled", "eval, sampled", { points: true }], ["eval.greedy", "eval, greedy", { points: true, color: "second", dash: true }]] },
  { title: "Groups with signal", help: "groups whose rewards differ; the others train nothing", lines: [["signal", "share"]] },
  { title: "Entropy", help: "of the policy, per token; near 0, it no longer explores", each: true, lines: [["entropy", "entropy"]] },
  { title: "KL", help: "from the model before training, per token", each: true, lines: [["kl", "KL"]] },
  { title: "Loss", help: "falls in supervised steps; its level says little in others", each: true, lines: [["loss", "loss"]] },
  { title: "Gradient norm", help: "before clipping", each: true, lines: [["grad_norm", "norm"]] },
  { title: "Engine/trainer mismatch", help: "between the log-probabilities of sampler and trainer", each: true, lines: [["mismatch_kl", "KL"], ["mismatch_abs", "mean |Δ|", { color: "second", dash: true }]] },
  { title: "Clip fraction", help: "tokens whose ratio left the clip range", each: true, lines: [["clip_fraction", "share"]] },
  { title: "Truncated replies", help: "replies that end at a token limit", lines: [["truncated_fraction", "share"]] },
  { title: "Tokens per second", help: "sampled per second", lines: [["tokens_per_second", "tokens/s"]] },
];

const COLORS = ["accent", "second", "warn", "bad", "good", "soft"];
const FEW = 3; // values that have points, because one value alone draws no line
const AXIS = 10; // steps of the axis at the start of a run

// The lines of a chart. What is measured for each policy has a line for each, in the policy's colour.
function linesOf(spec: Spec, columns: Columns, policies: string[]): Series[] {
  const line = (key: string, name: string, more?: Partial<Series>): Series[] => {
    const values = columns[key];
    return values ? [{ name, values, points: values.filter((value) => value !== null).length < FEW, ...more }] : [];
  };
  const own = !spec.each ? [] : policies.flatMap((policy, place) => spec.lines.flatMap(([key, label, more]) =>
    line(`${policy}/${key}`, spec.lines.length > 1 ? `${policy}, ${label}` : policy, { ...more, color: COLORS[place % COLORS.length] as string })));
  return own.length ? own : spec.lines.flatMap(([key, label, more]) => line(key, label, more));
}

function Charts({ view, name, theme }: { view: RunView; name: string; theme: string }) {
  const { columns, policies, run } = view;
  const steps = columns.step as number[];
  const charts = useMemo(() => CHARTS.flatMap((spec) => {
    const series = linesOf(spec, columns, policies);
    return series.length ? [{ ...spec, series }] : [];
  }), [columns]);
  const began = (steps.at(-1) ?? 0) > 0;
  const missing = CHARTS.filter((spec) => !charts.some((chart) => chart.title === spec.title)).map((spec) => spec.title.toLowerCase());
  return (
    <>
      <div class="charts">
        {charts.map((chart) => (
          <Chart key={chart.title} title={chart.title} help={chart.help} steps={steps} series={chart.series} theme={theme} least={Math.min(run.planned ?? AXIS, AXIS)}
            onStep={(step) => go(to(["run", name, "rollouts"], { step }))} />
        ))}
      </div>
      <p class="muted small">Click a step to see its rollouts.{began && missing.length > 0 && ` ${run.running ? "Not measured so far" : "Not measured by this run"}: ${missing.join(", ")}.`}</p>
    </>
  );
}

function WhereTimeGoes({ time, total }: { time: Record<string, number>; total: number | null }) {
  const measured = Object.values(time).reduce((sum, seconds) => sum + seconds, 0);
  const rest = Math.max(0, (total ?? 0) - measured);
  const parts: [string, number][] = [...Object.entries(time), ...(rest > 0.02 * measured ? [["everything else", rest] as [string, number]] : [])];
  const all = measured + (parts.length > Object.keys(time).length ? rest : 0);
  return (
    <section class="time" aria-label="Where the time goes">
      <h2>Where the time goes</h2>
      <div class="bar" aria-hidden="true">{parts.map(([name, seconds], place) => <span key={name} class={`shade-${Math.min(place, 4)}`} style={{ width: `${(100 * seconds) / all}%` }} />)}</div>
      <ul class="legend">
        {parts.map(([name, seconds], place) => (
          <li key={name}><span class={`dot shade-${Math.min(place, 4)}`} aria-hidden="true" />{name} <span class="muted num">{duration(seconds)} · {all ? Math.round((100 * seconds) / all) : DASH}%</span></li>
        ))}
      </ul>
    </section>
  );
}
