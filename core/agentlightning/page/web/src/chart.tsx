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

export function Chart({ title, help, steps, series, height = 168, theme, onStep }: {
  title: string; help: string; steps: number[]; series: Series[]; height?: number; theme: string; onStep?: (step: number) => void;
}) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const [place, setPlace] = useState<number | null>(null);
  const step = useRef(onStep);
  step.current = onStep;
  const names = series.map((line) => `${line.name}${line.values.some((value) => value !== null) ? "" : " (none)"}`).join("|");
  const data: uPlot.AlignedData = [steps, ...series.map((line) => line.values)];

  useEffect(() => {
    const element = box.current;
    if (!element) return;
    const grid = color("line"), text = color("muted");
    const axis = { stroke: text, grid: { stroke: grid, width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    plot.current = new uPlot({
      width: element.clientWidth, height,
      padding: [8, 8, 0, 0],
      cursor: { sync: { key: sync.key }, y: false, points: { size: 6 } },
      legend: { show: false },
      scales: { x: { time: false }, y: { range: (_, low, high) => padded(low, high) } },
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
  }, [names, theme, height]);

  useEffect(() => plot.current?.setData(data), [steps, series]);

  const latest = series.map((line) => `${line.name} ${short(line.values.findLast((value) => value !== null))}`).join(", ");
  return (
    <figure class="chart" aria-label={`${title} by step; latest: ${latest}`}>
      <figcaption><strong>{title}</strong><span class="muted help" title={help}>{help}</span></figcaption>
      <div ref={box} class={onStep ? "clickable" : ""} />
      <ul class="legend" aria-hidden="true">
        <li class="muted">step <span class="num">{steps[place ?? steps.length - 1]}</span></li>
        {series.map((line) => (
          <li key={line.name}><span class={`dot ${line.dash ? "ring" : ""}`} style={{ color: `var(--${line.color ?? "accent"})` }} />{line.name} <span class="num">{short(place === null ? line.values.findLast((value) => value !== null) : line.values[place])}</span></li>
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
