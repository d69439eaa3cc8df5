// A message as a person reads it, and the tools of a call.
import type { Message, Reply } from "./api";
import { json, plural } from "./format";
import { Advantage, Badge } from "./parts";

export function ToolSchemas({ tools }: { tools: unknown[] }) {
  return (
    <details class="fold tools">
      <summary>{plural(tools.length, "tool")} offered: <span class="muted">{tools.map(toolName).join(", ")}</span></summary>
      {tools.map((tool, place) => <div key={place} class="message"><div class="role">{toolName(tool)}</div><pre>{json(tool)}</pre></div>)}
    </details>
  );
}

export function toolName(tool: unknown): string {
  const fields = tool as { name?: string; type?: string; function?: { name?: string } };
  return fields.function?.name ?? fields.name ?? fields.type ?? "tool";
}

export function MessageCard({ message, reply }: { message: Message; reply?: Pick<Reply, "finish" | "advantage"> | undefined }) {
  const role = typeof message?.role === "string" ? message.role : "message";
  const calls = (message?.tool_calls ?? []) as { function?: { name?: string; arguments?: unknown }; name?: string; arguments?: unknown }[];
  const text = contentText(message?.content);
  return (
    <div class={`message ${role} ${reply ? "sampled" : ""}`}>
      <div class="role">
        {reply ? "reply" : role}{message?.name && <span class="muted"> {message.name}</span>}
        <span class="grow" />
        {reply && <>{reply.finish && <Badge>{reply.finish}</Badge>}<Advantage value={reply.advantage} /></>}
      </div>
      {message?.reasoning_content ? <details class="fold"><summary>Reasoning</summary><pre>{contentText(message.reasoning_content)}</pre></details> : null}
      {text && <pre>{text}</pre>}
      {calls.map((call, place) => (
        <div key={place} class="tool-call"><span class="glyph" aria-hidden="true">▲</span><strong>{call.function?.name ?? call.name}</strong><pre>{json(call.function?.arguments ?? call.arguments ?? {})}</pre></div>
      ))}
      {!text && calls.length === 0 && !message?.reasoning_content && <p class="muted">empty</p>}
    </div>
  );
}

// Text, or the texts of content parts. Other parts are shown as JSON.
export function contentText(content: unknown): string {
  if (content === null || content === undefined) return "";
  if (typeof content === "string") return content;
  if (Array.isArray(content)) {
    return content.map((part: unknown) => {
      const text = (part as { text?: unknown })?.text;
      return typeof part === "string" ? part : typeof text === "string" ? text : json(part);
    }).join("\n");
  }
  return json(content);
}
