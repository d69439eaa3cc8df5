// The settings of a run. What differs from the defaults stands first.
import { useState } from "preact/hooks";
import type { Section } from "./api";
import { Choice, Empty, Loading, Problem, useGet } from "./parts";

export function Settings({ name }: { name: string }) {
  const { value, error } = useGet<Section[]>("settings", { source: name });
  const [all, setAll] = useState<"differs" | "all">("differs");
  if (error) return <Problem error={error} />;
  if (!value) return <Loading />;
  const sections = value
    .map((section) => ({ ...section, settings: section.settings.filter((setting) => all === "all" || setting.differs || setting.required) }))
    .filter((section) => section.settings.length > 0);
  return (
    <>
      <div class="toolbar">
        <Choice label="Which settings" value={all} onChange={setAll} options={[["differs", "Chosen for this run"], ["all", "All settings"]]} />
        <span class="muted small">A dot marks a setting that differs from its default.</span>
      </div>
      {sections.length === 0 && <Empty title="Every setting has its default." />}
      {sections.map((section) => (
        <section key={section.title} class="card settings" aria-label={section.title}>
          <h3>{section.title}</h3>
          <dl>
            {section.settings.map((setting) => (
              <div key={setting.name} title={setting.text}>
                <dt class={setting.differs ? "differs" : ""}>{setting.name}</dt>
                <dd><code>{setting.value}</code>{setting.differs && setting.default && <span class="muted"> default <code>{setting.default}</code></span>}</dd>
              </div>
            ))}
          </dl>
        </section>
      ))}
    </>
  );
}
