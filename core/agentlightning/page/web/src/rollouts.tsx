// Rollouts, newest first, a page at a time. Filters and search are in the address.
import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, get, type Page, type Row, type RunList } from "./api";
import { count, duration, signed } from "./format";
import { Badge, Choice, Empty, Problem, RewardCell, Status, Tabs, useGet, useKeys } from "./parts";
import { go, to } from "./router";

type Query = Record<string, string>;
const FILTERS = ["mode", "sampling", "status", "trained", "step", "group", "lowest", "highest", "text"];
const ENOUGH = 50;

export function RolloutsView({ source, query }: { source: string; query: Query }) {
  const runs = useGet<RunList>("runs", {});
  const isRun = runs.value?.runs.some((run) => run.name === source) ?? true;
  const filters = Object.fromEntries(FILTERS.flatMap((name) => (query[name] ? [[name, query[name]]] : [])));
  const list = useRollouts(source, filters);
  const [place, setPlace] = useState(-1);
  const field = useRef<HTMLInputElement>(null);
  const address = to(["run", source, "rollouts"], filters);
  const set = (changes: Record<string, string | null>) => go(to(["run", source, "rollouts"], { ...filters, ...changes }), true);
  const open = (row: Row) => go(to(["run", source, "rollout", row.id]));
  useEffect(() => setPlace(-1), [address]);
  useEffect(() => { if (place >= 0) document.querySelector(`[data-place="${place}"]`)?.scrollIntoView({ block: "nearest" }); }, [place]);
  useKeys({
    "/": () => field.current?.focus(),
    j: () => setPlace(Math.min(place + 1, list.rows.length - 1)),
    k: () => setPlace(Math.max(place - 1, 0)),
    Enter: () => { const row = list.rows[place]; if (row) open(row); },
  });
  return (
    <div class="view">
      <div class="heading">
        <h1>Rollouts</h1><span class="muted ellipsis">{source}</span><span class="grow" />
        <button type="button" class="button" onClick={list.again}>Refresh</button>
      </div>
      {isRun && (
        <Tabs label="Views of the run" current="rollouts" tabs={[
          { id: "overview", name: "Overview", href: to(["run", source]) },
          { id: "rollouts", name: "Rollouts", href: to(["run", source, "rollouts"]) },
          { id: "settings", name: "Settings", href: to(["run", source, "settings"]) },
        ]} />
      )}
      <Filters filters={filters} onChange={set} field={field} />
      {list.error && <Problem error={list.error} />}
      {list.rows.length > 0 && <Table rows={list.rows} source={source} place={place} onOpen={open} />}
      <div class="more" aria-live="polite">
        {list.loading
          ? <><span class="spinner" aria-hidden="true" /> {list.searched > ENOUGH ? `Searched ${count(list.searched)} rollouts, found ${count(list.rows.length)}` : "Reading"} <button type="button" class="quiet" onClick={list.stop}>Stop</button></>
          : list.error
            ? list.rows.length > 0 && <button type="button" class="button" onClick={list.load}>Try again</button>
            : list.more
              ? <><button type="button" class="button" onClick={list.load}>Load more</button>{list.searched > list.rows.length && <span class="muted">Searched {count(list.searched)} rollouts, found {count(list.rows.length)}.</span>}</>
              : list.rows.length === 0
                ? <Empty title="No rollout matches">{Object.keys(filters).length > 0 ? <a href={to(["run", source, "rollouts"])}>Remove the filters</a> : "Rollouts appear here when they are recorded."}</Empty>
                : <span class="muted">No more: {count(list.rows.length)} of {count(list.searched)} rollouts.</span>}
      </div>
    </div>
  );
}

// The pages read so far. A search goes on until it has a full page, unless somebody stops it.
function useRollouts(source: string, filters: Query) {
  const key = `${source}?${JSON.stringify(filters)}`;
  const fresh = { rows: [] as Row[], cursor: "" as string | null, searched: 0, loading: true, error: null as Error | null };
  const [state, setState] = useState({ ...fresh, key });
  const [round, setRound] = useState(0);
  const abort = useRef(new AbortController());
  const read = async (from: typeof state) => {
    abort.current.abort();
    const { signal } = (abort.current = new AbortController());
    let now = { ...from, loading: true, error: null as Error | null };
    const goal = now.rows.length + ENOUGH;
    setState(now);
    try {
      while (now.cursor !== null && now.rows.length < goal && !signal.aborted) {
        const page: Page = await get<Page>("rollouts", { source, ...filters, cursor: now.cursor }, signal);
        now = { ...now, rows: [...now.rows, ...page.rows], cursor: page.cursor, searched: now.searched + page.searched };
        setState(now);
      }
      setState({ ...now, loading: false });
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiError && error.status === 401) dispatchEvent(new Event("signed-out"));
      setState({ ...now, loading: false, error: error as Error });
    }
  };
  useEffect(() => {
    void read({ ...fresh, key });
    return () => abort.current.abort();
  }, [key, round]);
  const current = state.key === key ? state : { ...fresh, key };
  return {
    ...current,
    more: current.cursor !== null,
    load: () => void read(current),
    stop: () => { abort.current.abort(); setState({ ...current, loading: false }); },
    again: () => setRound(round + 1),
  };
}

function Filters({ filters, onChange, field }: { filters: Query; onChange: (changes: Record<string, string | null>) => void; field: { current: HTMLInputElement | null } }) {
  const select = (name: string, label: string, options: [string, string][]) => (
    <select aria-label={label} value={filters[name] ?? ""} class={filters[name] ? "set" : ""} onChange={(event) => onChange({ [name]: event.currentTarget.value })}>
      <option value="">{label}</option>
      {options.map(([value, text]) => <option key={value} value={value}>{text}</option>)}
    </select>
  );
  const input = (name: string, label: string, width: string) => (
    <input key={`${name}${filters[name] ?? ""}`} class={`${width} ${filters[name] ? "set" : ""}`} type="number" step="any" placeholder={label} aria-label={label} defaultValue={filters[name] ?? ""}
      onChange={(event) => onChange({ [name]: event.currentTarget.value })} />
  );
  return (
    <div class="toolbar" role="search">
      <Choice label="Mode" value={filters.mode ?? ""} onChange={(mode) => onChange({ mode })}
        options={[["", "All"], ["train", "Train"], ["eval", "Eval"], ["production", "Production"]]} />
      {select("sampling", "Sampling", [["sampled", "sampled"], ["greedy", "greedy"], ["as asked", "as the agent asks"]])}
      {select("status", "Status", [["succeeded", "succeeded"], ["failed", "failed"], ["running", "running"], ["queued", "queued"], ["cancelled", "cancelled"]])}
      {select("trained", "Trained", [["yes", "trained"], ["no", "not trained"]])}
      {input("step", "Step", "narrow")}
      {input("lowest", "Reward ≥", "narrow")}
      {input("highest", "Reward ≤", "narrow")}
      {filters.group && <button type="button" class="chip removable" onClick={() => onChange({ group: null })} aria-label={`Remove group ${filters.group}`}>group {filters.group} ×</button>}
      <span class="grow" />
      <input key={filters.text ?? ""} ref={field} type="search" class="wide" placeholder="Search tasks, prompts and replies" aria-label="Search tasks, prompts and replies" defaultValue={filters.text ?? ""}
        onChange={(event) => onChange({ text: event.currentTarget.value })} />
      {Object.keys(filters).length > 0 && <button type="button" class="quiet" onClick={() => onChange(Object.fromEntries(FILTERS.map((name) => [name, null])))}>Clear</button>}
    </div>
  );
}

function Table({ rows, source, place, onOpen }: { rows: Row[]; source: string; place: number; onOpen: (row: Row) => void }) {
  return (
    <div class="card scroll">
      <table class="list rollouts">
        <thead>
          <tr>
            <th>Task</th><th class="right">Step</th><th>Mode</th><th>Reward</th><th class="right">Calls</th><th class="right">Tools</th>
            <th class="right">Tokens</th><th class="right">Time</th><th>Trained</th>
          </tr>
        </thead>
        <tbody>
          {rows.map((row, index) => (
            <tr key={row.id} data-place={index} class={`open ${index === place ? "current" : ""}`} onClick={() => onOpen(row)}>
              <td class="task"><a href={to(["run", source, "rollout", row.id])} onClick={(event) => event.stopPropagation()}>{row.start}</a><div class="sub">{row.task}{row.error && <span class="bad-text"> · {row.error}</span>}</div></td>
              <td class="right num">{row.step ?? ""}</td>
              <td class="nowrap">{row.mode}<div class="sub">{row.sampling}</div></td>
              <td>{row.status === "succeeded" ? <RewardCell value={row.reward} /> : <Status status={row.status} />}</td>
              <td class="right num">{row.calls}</td>
              <td class="right num">{row.tools}</td>
              <td class="right num">{count(row.tokens)}</td>
              <td class="right num nowrap">{duration(row.seconds)}</td>
              <td><Trained row={row} /></td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Trained({ row }: { row: Row }) {
  if (row.trained) return <><span class="num">{count(row.trained)} tokens</span>{row.advantage !== null && <div class="sub">advantage {signed(row.advantage, 2)}</div>}</>;
  return <span class="muted reason" title={row.reason ?? ""}>{row.reason ?? (row.status === "queued" || row.status === "running" ? <Badge>not yet</Badge> : "")}</span>;
}
