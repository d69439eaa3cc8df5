// Characters that turn the direction of text round, such as U+202E, are shown by their codes: a recorded text could hide what it says.
// Only what is drawn changes. Fields of forms keep the characters, so a replayed prompt is the recorded one.
import { options } from "preact";

const TURNING = /[\u202a-\u202e\u2066-\u2069]/g;
const DRAWN = ["children", "title", "aria-label"];

function visible(value: unknown): unknown {
  if (typeof value === "string") return value.replace(TURNING, (character) => `\\u${character.charCodeAt(0).toString(16)}`);
  return Array.isArray(value) ? value.map(visible) : value;
}

const before = options.vnode;
options.vnode = (node) => {
  const props = node.props as Record<string, unknown>;
  for (const name of DRAWN) if (props[name] !== undefined) props[name] = visible(props[name]);
  before?.(node);
};
