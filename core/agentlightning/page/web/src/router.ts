// Addresses of views: `#/run/NAME/rollouts?mode=train`. Everything that a view shows is in its address, so a view can be shared.
import { useEffect, useState } from "preact/hooks";
import { search } from "./api";

export interface Route { path: string[]; query: Record<string, string> }
type Query = Record<string, string | number | null | undefined>;

export function parse(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split("?");
  return { path: path.split("/").filter(Boolean).map(decode), query: Object.fromEntries(new URLSearchParams(query)) };
}

// A part of an address. One that is no valid encoding stays as it is, and no view has its name.
export function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

export function to(path: (string | number)[], query: Query = {}): string {
  const text = search(query);
  return `#/${path.map((part) => encodeURIComponent(part)).join("/")}${text ? `?${text}` : ""}`;
}

export function go(address: string, replace = false): void {
  if (replace) {
    history.replaceState(null, "", address);
    dispatchEvent(new HashChangeEvent("hashchange"));
  } else location.hash = address;
}

export function useRoute(): Route {
  const [route, setRoute] = useState(() => parse(location.hash));
  useEffect(() => {
    const change = () => setRoute(parse(location.hash));
    addEventListener("hashchange", change);
    return () => removeEventListener("hashchange", change);
  }, []);
  return route;
}
