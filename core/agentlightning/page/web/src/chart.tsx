// A curve over the steps of a run, drawn by uPlot. All charts of a view share one cursor.
import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { short } from "./format";

export interface Series { name: string; values: (number | null)[]; color?: string; dash?: boolean; points?: boolean }

// A colour of the style sheet, as the canvas needs it.
export function color(name: string): string {
  const probe = document.createElement("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

const sync = uPlot.sync("steps");

// The place of the last value; -1: there is none.
function lastPlace(line: Series): number {
  return line.values.findLastIndex((value) => value !== null);
}

// From the first step to the last, or to `least`. A part that somebody chose with the mouse stays.
function stepRange(steps: number[], least: number, low: number | null, high: number | null): [number, number] {
  const first = steps[0] ?? 0, last = steps.at(-1) ?? 0;
  if (low !== null && high !== null && (low > first || high < last)) return [low, high];
  const end = Math.max(last, least);
  return [Math.min(first, end - 1), end];
}

// `least`: the axis has at least these steps.
export function Chart({ title, help, steps, series, least, height = 168, theme, onStep }: {
  title: string; help: string; steps: number[]; series: Series[]; least: number; height?: number; theme: string; onStep?: (step: number) => void;
}) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const [place, setPlace] = useState<number | null>(null);
  const step = useRef(onStep);
  step.current = onStep;
  const names = series.map((line) => `${line.name}${line.values.some((value) => value !== null) ? "" : " (none)"}${line.points ? " ." : ""}`).join("|");
  const data: uPlot.AlignedData = [steps, ...series.map((line) => line.values)];

  useEffect(() => {
    const element = box.current;
    if (!element) return;
    const grid = color("line"), text = color("muted");
    const axis = { stroke: text, grid: { stroke: grid, width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    plot.current = new uPlot({
      width: element.clientWidth, height,
      padding: [8, 18, 0, 0],
      cursor: { sync: { key: sync.key }, y: false, points: { size: 6 } },
      legend: { show: false },
      scales: { x: { time: false, range: (chart, low, high) => stepRange(chart.data[0] as number[], least, low, high) }, y: { range: (_, low, high) => padded(low, high) } },
      axes: [
        { ...axis, size: 24, gap: 4, grid: { show: false }, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000] },
        { ...axis, size: 46, gap: 6, space: 36, values: (_, ticks) => ticks.map(short) },
      ],
      series: [
        { label: "step" },
        ...series.map((line) => ({
          label: line.name, stroke: color(line.color ?? "accent"), width: 1.75, spanGaps: true,
          dash: line.dash ? [5, 4] : [], points: { show: line.points ?? false, size: 5, fill: color(line.color ?? "accent") },
          value: (_: uPlot, value: number | null) => short(value),
        })),
      ],
      hooks: {
        setCursor: [(chart) => setPlace(chart.cursor.idx ?? null)],
        ready: [(chart) => chart.over.addEventListener("click", () => {
          const place = chart.cursor.idx, value = place === null || place === undefined ? undefined : chart.data[0][place];
          if (value !== undefined) step.current?.(value);
        })],
      },
    }, data, element);
    const resize = new ResizeObserver(() => plot.current?.setSize({ width: element.clientWidth, height }));
    resize.observe(element);
    return () => { resize.disconnect(); plot.current?.destroy(); };
  }, [names, theme, height, least]);

  useEffect(() => plot.current?.setData(data), [steps, series]);

  const shown = place ?? Math.max(...series.map(lastPlace)); // the step of the legend: under the cursor, or the last one of the chart
  const legend = series.map((line) => {
    const at = place ?? lastPlace(line);
    return { line, value: short(line.values[at]), note: at === shown || at < 0 ? "" : ` at step ${steps[at]}` };
  });
  const latest = legend.map(({ line, value, note }) => `${line.name} ${value}${note}`).join(", ");
  return (
    <figure class="chart" aria-label={`${title} by step; step ${steps[shown] ?? "none"}: ${latest}`}>
      <figcaption><strong>{title}</strong><span class="muted help" title={help}>{help}</span></figcaption>
      <div ref={box} class={onStep ? "clickable" : ""} />
      <ul class="legend" aria-hidden="true">
        <li class="muted">step <span class="num">{steps[shown] ?? "–"}</span></li>
        {legend.map(({ line, value, note }) => (
          <li key={line.name}><span class={`dot ${line.dash ? "ring" : ""}`} style={{ color: `var(--${line.color ?? "accent"})` }} />{line.name} <span class="num">{value}</span>{note}</li>
        ))}
      </ul>
    </figure>
  );
}

function padded(low: number | null, high: number | null): [number, number] {
  if (low === null || high === null) return [0, 1];
  if (low === high) return low === 0 ? [0, 1] : [Math.min(0, low * 1.2), Math.max(0, high * 1.2)];
  const room = (high - low) * 0.08;
  return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
}

// A small curve without axes.
export function Sparkline({ values }: { values: number[] }) {
  if (values.length < 2) return <span class="muted">–</span>;
  const low = Math.min(...values), high = Math.max(...values), span = high - low || 1;
  const points = values.map((value, place) => `${((place / (values.length - 1)) * 88 + 1).toFixed(1)},${(21 - ((value - low) / span) * 18).toFixed(1)}`);
  return (
    <svg class="sparkline" viewBox="0 0 90 24" width="90" height="24" role="img" aria-label={`reward from ${short(values[0])} to ${short(values.at(-1))}`}>
      <polyline points={points.join(" ")} />
    </svg>
  );
}
