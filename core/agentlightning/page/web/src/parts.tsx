// Small parts that all views share.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, get } from "./api";
import { number, signed } from "./format";

export function Badge({ tone = "", live = false, title, children }: { tone?: string; live?: boolean; title?: string; children: ComponentChildren }) {
  return <span class={`badge ${tone}`} title={title}>{live && <span class="pulse" aria-hidden="true" />}{children}</span>;
}

const TONES: Record<string, string> = { running: "accent", succeeded: "good", finished: "", failed: "bad", error: "bad", refused: "bad", lost: "warn", timed_out: "bad", cancelled: "warn" };

export function Status({ status }: { status: string }) {
  return <Badge tone={TONES[status] ?? ""} live={status === "running"}>{status === "running" ? "live" : status.replace("_", " ")}</Badge>;
}

export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return <div class="empty"><strong>{title}</strong>{children && <p>{children}</p>}</div>;
}

// Shown only when an answer takes longer than a moment.
export function Loading() {
  return <p class="loading" role="status"><span class="spinner" aria-hidden="true" />Loading</p>;
}

export function Problem({ error }: { error: Error }) {
  return <div class="callout bad" role="alert"><strong>Cannot show this.</strong><p>{error.message}</p></div>;
}

export function Stat({ label, title, children, note }: { label: string; title?: string; children: ComponentChildren; note?: ComponentChildren }) {
  return <div class="stat" title={title}><span class="label">{label}</span><span class="value">{children}</span>{note && <span class="note">{note}</span>}</div>;
}

// A reward as a number on a small bar from 0 to 1. Other rewards have no bar.
export function RewardCell({ value }: { value: number | null }) {
  if (value === null) return <span class="muted">–</span>;
  return (
    <span class="reward">
      <span class="num">{number(value, 2)}</span>
      {value >= 0 && value <= 1 && <span class="meter" aria-hidden="true"><span style={{ width: `${value * 100}%` }} /></span>}
    </span>
  );
}

export function Advantage({ value }: { value: number | null }) {
  if (value === null) return null;
  return <span class={`chip ${value > 0 ? "good" : value < 0 ? "bad" : ""}`} title="advantage: how much better than its group">A {signed(value, 2)}</span>;
}

export function Change({ low, high, children }: { low?: number | undefined; high?: number | undefined; children: ComponentChildren }) {
  const tone = low !== undefined && low > 0 ? "good-text" : high !== undefined && high < 0 ? "bad-text" : "muted";
  return <span class={tone}>{children}</span>;
}

export function Tabs({ label, tabs, current }: { label: string; tabs: { id: string; name: ComponentChildren; href: string }[]; current: string }) {
  return (
    <nav class="tabs" aria-label={label}>
      {tabs.map((tab) => <a key={tab.id} href={tab.href} aria-current={tab.id === current ? "page" : undefined}>{tab.name}</a>)}
    </nav>
  );
}

export function Choice<T extends string>({ label, options, value, onChange }: { label: string; options: [T, string, string?][]; value: T; onChange: (value: T) => void }) {
  return (
    <div class="segments" role="group" aria-label={label}>
      {options.map(([id, name, disabled]) => (
        <button key={id} type="button" aria-pressed={id === value} disabled={Boolean(disabled)} title={disabled} onClick={() => onChange(id)}>{name}</button>
      ))}
    </div>
  );
}

export interface Loaded<T> { value: T | null; error: Error | null; loading: boolean }

// The answer to a request, asked again when its name or query changes, and every `every` seconds.
export function useGet<T>(name: string, query: Record<string, string | number | null | undefined>, every?: number): Loaded<T> {
  const [state, setState] = useState<Loaded<T> & { key: string }>({ value: null, error: null, loading: true, key: "" });
  const key = `${name} ${JSON.stringify(query)}`;
  useEffect(() => {
    const abort = new AbortController();
    const load = () => get<T>(name, query, abort.signal)
      .then((value) => setState({ value, error: null, loading: false, key }))
      .catch((error: Error) => {
        if (abort.signal.aborted) return;
        if (error instanceof ApiError && error.status === 401) dispatchEvent(new Event("signed-out"));
        setState((before) => ({ value: before.key === key ? before.value : null, error, loading: false, key }));
      });
    void load();
    const timer = every ? setInterval(() => { if (!document.hidden) void load(); }, every * 1000) : undefined;
    return () => { abort.abort(); clearInterval(timer); };
  }, [key, every]);
  return state.key === key ? state : { value: null, error: null, loading: true };
}

// A key of the page, unless somebody types into a field. The actions are those of the last render: effects come later than fast keys.
export function useKeys(keys: Record<string, () => void>): void {
  const latest = useRef(keys);
  latest.current = keys;
  useEffect(() => {
    const press = (event: KeyboardEvent) => {
      const target = event.target as HTMLElement;
      if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName)) return;
      const action = latest.current[event.key];
      if (action) { event.preventDefault(); action(); }
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
}
