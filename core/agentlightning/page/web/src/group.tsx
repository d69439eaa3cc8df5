// The rollouts of one task side by side. Where their replies part is marked.
import type { Group } from "./api";
import { json, plural, signed } from "./format";
import { Loading, Problem, RewardCell, Status, useGet } from "./parts";
import { to } from "./router";

export function GroupView({ source, group, query }: { source: string; group: string; query: Record<string, string> }) {
  const { value, error } = useGet<Group>("group", { source, group });
  if (error && !value) return <Problem error={error} />;
  if (!value) return <Loading />;
  const rewards = value.rollouts.flatMap(({ row }) => (row.reward === null ? [] : [row.reward]));
  const mean = rewards.length ? rewards.reduce((sum, reward) => sum + reward, 0) / rewards.length : null;
  const equal = rewards.length > 1 && rewards.every((reward) => reward === rewards[0]);
  return (
    <div class="view">
      <div class="heading"><h1 class="clamp">{value.rollouts[0]?.row.start}</h1></div>
      <p class="facts">
        <span>group {value.group}</span><span>task {value.task}</span><span>{plural(value.rollouts.length, "rollout")}</span>
        {mean !== null && <span>mean reward {signed(mean, 2).replace("+", "")}</span>}
        {equal && <span class="warn-text">all rewards are equal, so the group trains nothing</span>}
        {value.more && <span>only the first ones are shown</span>}
      </p>
      <details class="fold"><summary>Task</summary><pre>{json(value.input)}</pre></details>
      <div class="columns">
        {value.rollouts.map(({ row, replies }) => (
          <article key={row.id} class={`column ${row.id === query.at ? "here" : ""}`}>
            <header>
              <a class="name" href={to(["run", source, "rollout", row.id])}>#{row.index + 1}</a>
              {row.status === "succeeded" ? <RewardCell value={row.reward} /> : <Status status={row.status} />}
              <span class="grow" />
              {row.advantage !== null && <span class={`chip ${row.advantage > 0 ? "good" : row.advantage < 0 ? "bad" : ""}`}>A {signed(row.advantage, 2)}</span>}
            </header>
            <Replies replies={replies} common={value.common} source={source} id={row.id} />
          </article>
        ))}
      </div>
    </div>
  );
}

function Replies({ replies, common, source, id }: { replies: { call: string; text: string }[]; common: number | null; source: string; id: string }) {
  if (replies.length === 0) return <p class="muted">no reply</p>;
  let before = 0;
  return (
    <>
      {replies.map((reply, place) => {
        const start = before, end = before + reply.text.length;
        before = end;
        const same = common === null ? 0 : Math.max(0, Math.min(reply.text.length, common - start));
        const parts = common !== null && common >= start && (common < end || (common === end && place === replies.length - 1));
        return (
          <a key={reply.call} class="turn-text" href={to(["run", source, "rollout", id], { node: reply.call })} title={`Reply ${place + 1}`}>
            <span class="sub">{place + 1}</span>
            <pre><span class="same">{reply.text.slice(0, same)}</span>{parts && <span class="fork" title="The first difference of the group" />}{reply.text.slice(same)}</pre>
          </a>
        );
      })}
    </>
  );
}
