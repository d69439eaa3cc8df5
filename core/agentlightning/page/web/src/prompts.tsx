// What a search for prompts found, and what prompts and weights contributed in a run of two stages.
import type { Candidate, Interval, Search, Stages } from "./api";
import { count, interval, number, plural, signed } from "./format";
import { Badge, Change } from "./parts";
import { to } from "./router";

export function Prompts({ search }: { search: Search }) {
  const counts = [`${search.candidates.length - 1} accepted`, `${search.rejected} rejected`, plural(search.rollouts, "rollout"), `${count(search.tokens)} tokens`];
  const unscored = search.unscored > 0 ? [`${plural(search.unscored, "rollout")} without a reward counted as 0`] : [];
  return (
    <section class="prompts" aria-label="Prompts">
      <h2>Prompts</h2>
      <p class="muted small">{[...counts, ...unscored].join(", ")}</p>
      {search.best.map(({ name, text, own }) => (
        <div key={name} class="message"><div class="role">best {name}{own && <Badge>the agent’s own</Badge>}</div><pre>{text}</pre></div>
      ))}
      <details class="fold">
        <summary>{plural(search.candidates.length, "candidate")}, with their validation scores</summary>
        <Below parent={null} search={search} />
      </details>
    </section>
  );
}

// The candidates that were written from one parent.
function Below({ parent, search }: { parent: number | null; search: Search }) {
  const places = search.candidates.flatMap((candidate, place) => (candidate.parent === parent ? [place] : []));
  if (places.length === 0) return null;
  return (
    <ul class="candidates">
      {places.map((place) => (
        <li key={place}>
          <Line candidate={search.candidates[place] as Candidate} place={place} best={place === search.candidate} />
          <Below parent={place} search={search} />
        </li>
      ))}
    </ul>
  );
}

function Line({ candidate, place, best }: { candidate: Candidate; place: number; best: boolean }) {
  return (
    <details class="fold">
      <summary>
        {place} <strong class="num">{number(candidate.score)}</strong> {candidate.step ? `step ${candidate.step}` : "the agent’s own"}, {candidate.changed.map(({ name, version }) => `${name} ${version}`).join(", ")} {best && <Badge tone="good">best</Badge>}
      </summary>
      {candidate.changed.map(({ name, text }) => <div key={name} class="message"><div class="role">{name}</div><pre>{text}</pre></div>)}
    </details>
  );
}

export function Contributions({ stages }: { stages: Stages }) {
  return (
    <section class="prompts" aria-label="What each stage contributed">
      <h2>What prompts and weights contributed</h2>
      <p class="muted small">The prompts are those of {stages.run ? <a href={to(["run", stages.run])}><u>{stages.title}</u></a> : stages.title}.</p>
      <div class="card scroll">
        <table class="list">
          <thead><tr><th>Eval tasks</th><th class="right">Before</th><th>Prompts, 95% interval</th><th>Weights, 95% interval</th><th class="right">After</th></tr></thead>
          <tbody>
            {Object.entries(stages.kinds).map(([kind, stage]) => (
              <tr key={kind}>
                <td>{kind}</td><td class="right num">{number(stage.before)}</td>
                <td class="nowrap"><Gain value={stage.prompts} /></td><td class="nowrap"><Gain value={stage.weights} /></td>
                <td class="right num">{number(stage.after_weights)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}

function Gain({ value }: { value: Interval | undefined }) {
  if (!value) return <span class="muted">–</span>;
  return <Change low={value.low} high={value.high}><strong class="num">{signed(value.mean)}</strong> <span class="num">{interval(value.low, value.high)}</span></Change>;
}
