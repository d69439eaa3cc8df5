// Numbers, times and texts as people read them. A number that was not measured is a dash.

export const DASH = "–";

export function number(value: number | null | undefined, digits = 3): string {
  if (value === null || value === undefined) return DASH;
  if (value !== 0 && Math.abs(value) < 0.5 * 10 ** -digits) return value.toExponential(1);
  if (Math.abs(value) >= 1000) return count(Math.round(value));
  return value.toFixed(digits);
}

export function signed(value: number | null | undefined, digits = 3): string {
  return value === null || value === undefined ? DASH : `${value < 0 ? "−" : "+"}${number(Math.abs(value), digits)}`;
}

export function short(value: number | null | undefined): string {
  if (value === null || value === undefined) return DASH;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 10000) return `${+(value / 1000).toPrecision(3)}k`;
  if (size < 0.001) return value.toExponential(1).replace("e-", "e−");
  return String(+value.toPrecision(3));
}

export function count(value: number): string {
  return value.toLocaleString("en-US");
}

export function plural(value: number, noun: string): string {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}

export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined) return DASH;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${(minutes / 60).toFixed(1)} h`;
}

export function when(time: number | null): string {
  if (time === null) return DASH;
  return new Date(time * 1000).toLocaleString("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
}

export function interval(low: number, high: number): string {
  return `[${signed(low, 2)}, ${signed(high, 2)}]`;
}

// The end of an id: its random part.
export function shortId(id: string): string {
  return id.slice(-8);
}

export function json(value: unknown): string {
  if (typeof value === "string") {
    try {
      const parsed: unknown = JSON.parse(value);
      return typeof parsed === "object" && parsed !== null ? JSON.stringify(parsed, null, 2) : value;
    } catch {
      return value;
    }
  }
  return JSON.stringify(value, null, 2) ?? "";
}
