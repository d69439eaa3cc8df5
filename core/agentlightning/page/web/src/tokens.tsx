// The exact tokens of a reply and its prompt. Each sampled token is coloured by one of its numbers.
import { useRef, useState } from "preact/hooks";
import type { Detail, Reply, Tokens } from "./api";
import { count, number, plural, signed } from "./format";
import { Choice, Loading, Problem, useGet } from "./parts";
import { go, to } from "./router";

type Query = Record<string, string>;
type By = "logprob" | "advantage" | "version" | "mismatch";
const FIRST = 80;

interface Hovered { place: number; sampled: boolean; left: number; top: number }

export function TokensPanel({ reply, detail, source, query }: { reply: Reply; detail: Detail; source: string; query: Query }) {
  const { value, error } = useGet<Tokens>("tokens", { source, id: detail.row.id, reply: reply.id });
  const [all, setAll] = useState(false);
  const [hovered, setHovered] = useState<Hovered | null>(null);
  const box = useRef<HTMLDivElement>(null);
  if (error) return <Problem error={error} />;
  if (!value) return <Loading />;
  const by = (["logprob", "advantage", "version", "mismatch"].includes(query.by ?? "") ? query.by : "logprob") as By;
  const choose = (next: By) => go(to(["run", source, "rollout", detail.row.id], { ...query, by: next }), true);
  const { prompt, response } = value;
  const skipped = all ? 0 : Math.max(0, prompt.ids.length - FIRST);
  const hover = (event: Event) => {
    const target = (event.target as HTMLElement).closest<HTMLElement>("[data-at]");
    if (!target || !box.current) { setHovered(null); return; }
    const frame = box.current.getBoundingClientRect(), token = target.getBoundingClientRect();
    setHovered({
      place: Number(target.dataset.at), sampled: target.dataset.sampled === "yes",
      left: Math.min(token.left - frame.left, frame.width - 210), top: token.bottom - frame.top + 6,
    });
  };
  return (
    <div class="tokens-panel">
      <div class="toolbar">
        <Choice<By> label="Colour tokens by" value={by} onChange={choose}
          options={[["logprob", "Log-probability"], ["advantage", "Advantage", reply.advantage === null ? "This reply was not trained, so it has no advantage." : undefined], ["version", "Version"], ["mismatch", "Mismatch"]].map((option) => option as [By, string, string?])} />
        <Legend by={by} reply={reply} />
      </div>
      {!value.decoded && <p class="muted">The tokenizer of this run is not on this machine, so tokens show their ids.</p>}
      {by === "mismatch" && <MismatchNote tokens={value} reply={reply} />}
      {value.logprobs === null && <p class="muted">Log-probabilities were not measured{reply.missing ? `: ${reply.missing}` : "."}</p>}
      <div class="tokens" ref={box} onMouseOver={hover} onFocusIn={hover} onMouseLeave={() => setHovered(null)}>
        {skipped > 0 && <button type="button" class="quiet" onClick={() => setAll(true)}>Show {count(skipped)} earlier tokens</button>}
        {prompt.ids.slice(skipped).map((id, place) => <Token key={place} text={prompt.texts[place + skipped] ?? ""} id={id} at={place + skipped} decoded={value.decoded} />)}
        <span class="turn">{plural(response.ids.length, "sampled token")}</span>
        {response.ids.map((id, place) => (
          <Token key={`r${place}`} text={response.texts[place] ?? ""} id={id} at={place} decoded={value.decoded} tone={tone(by, value, reply, place)} sampled />
        ))}
        {hovered && <Tip hovered={hovered} tokens={value} reply={reply} />}
      </div>
    </div>
  );
}

function Token({ text, id, at, decoded, tone = "", sampled = false }: { text: string; id: number; at: number; decoded: boolean; tone?: string; sampled?: boolean }) {
  const shown = decoded ? text.replaceAll("\n", "⏎\n") : `${id} `;
  return <span class={`token ${sampled ? "sampled" : ""} ${tone}`} data-at={at} data-sampled={sampled ? "yes" : "no"} tabIndex={sampled ? 0 : undefined}>{shown}</span>;
}

// Why tokens have no mismatch, or how much the reply has.
function MismatchNote({ tokens, reply }: { tokens: Tokens; reply: Reply }) {
  if (tokens.logprobs === null) return null;
  if (tokens.trainer === null) {
    const reason = reply.trained ? "the trainer of this run does not report it per token. See the curve of the run." : "this reply was not trained.";
    return <p class="muted">Not recorded: {reason}</p>;
  }
  const compared = tokens.response.ids.map((_, place) => mismatch(tokens, place)).filter((value) => value !== null);
  const other = tokens.versions.filter((version) => version !== tokens.trainer?.version).length;
  return (
    <p class="muted">
      {compared.length > 0 && <>The trainer’s log-probability minus the engine’s. Mean size {number(compared.reduce((sum, value) => sum + Math.abs(value), 0) / compared.length, 4)}. </>}
      {other > 0 && <>{plural(other, "token")} came from another version than v{tokens.trainer.version}, so {other === 1 ? "its difference is" : "their differences are"} off-policy, not a mismatch.</>}
    </p>
  );
}

// Trainer minus engine; null: not measured, or the token is of other weights than the trainer's.
function mismatch(tokens: Tokens, place: number): number | null {
  return tokens.versions[place] === tokens.trainer?.version ? difference(tokens, place) : null;
}

function difference(tokens: Tokens, place: number): number | null {
  const engine = tokens.logprobs?.[place], trainer = tokens.trainer?.logprobs[place];
  return engine === null || engine === undefined || trainer === null || trainer === undefined ? null : trainer - engine;
}

// Probabilities and advantages in five steps of colour; versions in turn.
function tone(by: By, tokens: Tokens, reply: Reply, place: number): string {
  if (by === "advantage") return advantageTone(reply.advantage);
  if (by === "version") {
    const version = tokens.versions[place] ?? -1;
    return version < 0 ? "" : `v${reply.versions.indexOf(version) % 4}`;
  }
  if (by === "mismatch") {
    const value = mismatch(tokens, place), size = Math.abs(value ?? 0);
    return value === null ? "" : size > 0.2 ? "m3" : size > 0.05 ? "m2" : size > 0.01 ? "m1" : "m0";
  }
  const logprob = tokens.logprobs?.[place];
  if (logprob === null || logprob === undefined) return "";
  const chance = Math.exp(logprob);
  return chance > 0.95 ? "p0" : chance > 0.7 ? "p1" : chance > 0.3 ? "p2" : chance > 0.08 ? "p3" : "p4";
}

function advantageTone(advantage: number | null): string {
  if (advantage === null || advantage === 0) return "";
  const size = Math.abs(advantage) > 1 ? 3 : Math.abs(advantage) > 0.3 ? 2 : 1;
  return `${advantage > 0 ? "up" : "down"}${size}`;
}

const LEGENDS: Record<string, [string, string][]> = {
  logprob: [["p0", "> 95%"], ["p1", "> 70%"], ["p2", "> 30%"], ["p3", "> 8%"], ["p4", "rare"]],
  mismatch: [["m0", "≤ 0.01"], ["m1", "> 0.01"], ["m2", "> 0.05"], ["m3", "> 0.2"]],
  advantage: [["down3", "< −1"], ["down2", "< −0.3"], ["down1", "< 0"], ["up1", "> 0"], ["up2", "> 0.3"], ["up3", "> 1"]],
};

function Legend({ by, reply }: { by: By; reply: Reply }) {
  const entries = by === "version" ? reply.versions.map((version, place): [string, string] => [`v${place % 4}`, version < 0 ? "not the policy" : `v${version}`]) : (LEGENDS[by] ?? []);
  return <span class="token-legend" aria-label="Colours">{entries.map(([name, text]) => <span key={name + text} class={`token ${name}`}>{text}</span>)}</span>;
}

function Tip({ hovered, tokens, reply }: { hovered: Hovered; tokens: Tokens; reply: Reply }) {
  const { place, sampled } = hovered;
  const part = sampled ? tokens.response : tokens.prompt;
  const logprob = sampled ? tokens.logprobs?.[place] : undefined;
  const lines: [string, string][] = [["id", String(part.ids[place])], ["position", count(place + (sampled ? tokens.prompt.ids.length : 0))]];
  if (logprob !== null && logprob !== undefined) lines.push(["log-probability", number(logprob, 4).replace("-", "−")], ["probability", `${(100 * Math.exp(logprob)).toPrecision(3)}%`]);
  const gap = sampled ? difference(tokens, place) : null;
  if (gap !== null) {
    lines.push(["trainer’s", number(tokens.trainer?.logprobs[place], 4).replace("-", "−")]);
    lines.push([mismatch(tokens, place) === null ? "off-policy" : "mismatch", signed(gap, 4)]);
  }
  if (sampled && (tokens.versions[place] ?? -1) >= 0) lines.push(["version", String(tokens.versions[place])]);
  if (sampled && reply.advantage !== null) lines.push(["advantage", signed(reply.advantage, 3)]);
  return (
    <div class="tip" role="tooltip" style={{ left: `${Math.max(0, hovered.left)}px`, top: `${hovered.top}px` }}>
      <code>{JSON.stringify(part.texts[place] ?? "")}</code>
      <dl>{lines.map(([name, value]) => <div key={name}><dt>{name}</dt><dd class="num">{value}</dd></div>)}</dl>
    </div>
  );
}
