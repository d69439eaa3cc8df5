// The page: signs in, shows the view of the address, and keeps theme and help.
import { render } from "preact";
import "./bidi";
import { useEffect, useState } from "preact/hooks";
import { get, login, type RunList } from "./api";
import { CompareView } from "./compare";
import { GroupView } from "./group";
import { Loading, Problem, useKeys } from "./parts";
import { PlaygroundView } from "./playground";
import { RolloutView } from "./rollout";
import { RolloutsView } from "./rollouts";
import { decode, go, to, useRoute, type Route } from "./router";
import { RunsView } from "./runs";
import { RunPage } from "./run";
import { shortId } from "./format";
import "./style.css";

type Theme = "auto" | "light" | "dark";
const THEMES: Record<Theme, string> = { auto: "Theme: system", light: "Theme: light", dark: "Theme: dark" };

function App() {
  const route = useRoute();
  const [signedIn, setSignedIn] = useState<boolean | null>(null);
  const [start, setStart] = useState<RunList | null>(null);
  const [theme, setTheme] = useState<Theme>(() => (localStorage.getItem("theme") as Theme | null) ?? "auto");
  const [help, setHelp] = useState(false);
  const [refused, setRefused] = useState("");

  const enter = () => get<RunList>("runs").then((list) => { setStart(list); setSignedIn(true); }).catch(() => setSignedIn(false));
  useEffect(() => {
    const token = tokenOf(location.hash);
    if (token === null) { if (signedIn === null) void enter(); return; }
    go("#/", true); // the token stays neither in the address nor in the history
    setSignedIn(null);
    login(token).then(enter).catch((problem: Error) => { setRefused(problem.message); setSignedIn(false); });
  }, [route]);
  useEffect(() => {
    const leave = () => setSignedIn(false);
    addEventListener("signed-out", leave);
    return () => removeEventListener("signed-out", leave);
  }, []);
  useEffect(() => {
    if (start?.start && route.path.length === 0) {
      const store = start.stores.some((entry) => entry.name === start.start);
      go(store ? to(["run", start.start, "rollouts"]) : to(["run", start.start]), true);
      setStart({ ...start, start: "" });
    }
  }, [start, route]);
  useEffect(() => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    localStorage.setItem("theme", theme);
  }, [theme]);
  useKeys({ "?": () => setHelp(!help), Escape: () => setHelp(false), g: () => go("#/") });

  const next: Theme = theme === "auto" ? "light" : theme === "light" ? "dark" : "auto";
  return (
    <>
      <a class="skip" href="#content" onClick={(event) => { event.preventDefault(); document.getElementById("content")?.focus(); }}>Skip to content</a>
      <header class="top">
        <a class="brand" href="#/"><img src="/view/icon.svg" alt="" width="22" height="22" /><span>Agent Lightning</span></a>
        <Crumbs route={route} />
        <span class="grow" />
        <a class="quiet button" href={to(["playground"], { source: route.path[0] === "run" ? route.path[1] : null })}>Playground</a>
        <button type="button" class="quiet shortcuts" onClick={() => setHelp(!help)} aria-expanded={help}>Shortcuts</button>
        <button type="button" class="quiet theme" onClick={() => setTheme(next)} title={THEMES[theme]} aria-label={THEMES[theme]}>
          {theme === "auto" ? "◐" : theme === "light" ? "○" : "●"}
        </button>
      </header>
      <main id="content" tabIndex={-1}>
        {signedIn === null ? <Loading /> : signedIn ? <View route={route} theme={theme} /> : <SignIn onEnter={enter} refused={refused} />}
      </main>
      {help && <Keys onClose={() => setHelp(false)} />}
    </>
  );
}

// The token of the link that `agl view` prints; null: the address has none.
function tokenOf(hash: string): string | null {
  const token = /^#token=([^&]*)/.exec(hash)?.[1];
  return token === undefined ? null : decode(token);
}

function View({ route, theme }: { route: Route; theme: string }) {
  const [kind, name = "", view, id = ""] = route.path;
  if (kind === undefined) return <RunsView query={route.query} />;
  if (kind === "compare") return <CompareView a={route.query.a ?? ""} b={route.query.b ?? ""} query={route.query} />;
  if (kind === "playground") return <PlaygroundView key={JSON.stringify(route.query)} query={route.query} />;
  if (kind === "run" && view === undefined) return <RunPage name={name} tab="overview" theme={theme} />;
  if (kind === "run" && view === "settings") return <RunPage name={name} tab="settings" theme={theme} />;
  if (kind === "run" && view === "rollouts") return <RolloutsView source={name} query={route.query} />;
  if (kind === "run" && view === "rollout") return <RolloutView key={id} source={name} id={id} query={route.query} />;
  if (kind === "run" && view === "group") return <GroupView source={name} group={id} query={route.query} />;
  return <Problem error={new Error(`This page has no view ${location.hash}.`)} />;
}

function Crumbs({ route }: { route: Route }) {
  const [kind, name, view, id] = route.path;
  const crumbs: [string, string][] = [];
  if (kind === "compare") crumbs.push(["Compare", location.hash]);
  if (kind === "playground") crumbs.push(["Playground", location.hash]);
  if (kind === "run" && name) crumbs.push([name.split("/").at(-1) ?? name, to(["run", name])]);
  if (name && (view === "rollouts" || view === "rollout" || view === "group")) crumbs.push(["Rollouts", to(["run", name, "rollouts"])]);
  if (view === "rollout" && id) crumbs.push([shortId(id), location.hash]);
  if (view === "group" && id) crumbs.push([`group ${id}`, location.hash]);
  if (view === "settings") crumbs.push(["Settings", location.hash]);
  return <nav class="crumbs" aria-label="Breadcrumbs">{crumbs.map(([text, href]) => <a key={href} href={href}>{text}</a>)}</nav>;
}

function SignIn({ onEnter, refused }: { onEnter: () => void; refused: string }) {
  const [failed, setError] = useState("");
  const error = failed || refused;
  const submit = (event: Event) => {
    event.preventDefault();
    const field = (event.target as HTMLFormElement).elements.namedItem("token") as HTMLInputElement;
    login(field.value).then(onEnter).catch((problem: Error) => setError(problem.message));
  };
  return (
    <form class="sign-in" onSubmit={submit}>
      <h1>Sign in</h1>
      {!error && <p>Open the link that <code>agl view</code> printed, or paste its token.</p>}
      <label>Token<input name="token" type="password" autocomplete="off" autofocus /></label>
      {error && <p class="bad-text" role="alert">{error}</p>}
      <button type="submit" class="primary">Sign in</button>
    </form>
  );
}

const KEYS: [string, string][] = [
  ["g", "all runs"], ["/", "search rollouts"], ["j  k", "next and previous row, node, or task"], ["Enter", "open the row"],
  ["[  ]", "previous and next rollout of the group"], ["t", "messages or exact tokens"], ["Ctrl  Enter", "ask, in the playground"], ["?", "these keys"],
];

function Keys({ onClose }: { onClose: () => void }) {
  return (
    <div class="keys" role="dialog" aria-label="Keyboard shortcuts">
      <dl>{KEYS.map(([key, text]) => <div key={key}><dt>{key.split("  ").map((name) => <kbd key={name}>{name}</kbd>)}</dt><dd>{text}</dd></div>)}</dl>
      <button type="button" class="quiet" onClick={onClose}>Close</button>
    </div>
  );
}

const root = document.getElementById("app");
if (root) render(<App />, root);
