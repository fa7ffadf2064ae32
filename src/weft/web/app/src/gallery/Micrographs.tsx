/** All micrographs as pictures: searched, sorted, filtered, and marked from the keyboard. */
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { columns } from "../data/columns";
import { brushed } from "../data/highlight";
import { readonly, selection } from "../data/store";
import { address, replaceQuery, route } from "../router";
import { count } from "../ui/format";
import { Grid } from "./Grid";
import { FILTERS, lastList, listed, matches, wantedOf, type Wanted } from "./list";

const SIZES = { small: 128, medium: 184, large: 288 } as const;
type Size = keyof typeof SIZES;
let lastSize: Size = window.innerWidth < 600 ? "small" : "medium";

function countOf(state: string): number {
  let n = 0;
  for (let index = 0; index < columns.length; index++) if (matches(index, state)) n++;
  return n;
}

export function Micrographs() {
  const wanted = wantedOf(route.value.query);
  const search = useRef<HTMLInputElement>(null);
  const [size, setSize] = useState<Size>(lastSize);
  const version = columns.version.value;
  const key = JSON.stringify(wanted);
  const highlighted = wanted.only === "highlighted" ? brushed.value : null;
  const items = useMemo(() => listed(wanted), [version, key, highlighted]);
  useEffect(() => {
    lastList.ids = items.map((index) => columns.ids[index]!);
  }, [items]);
  const counts = useMemo(() => new Map(FILTERS.map(([state]) => [state, countOf(state)])), [version]);

  const change = (part: Partial<Wanted>) => {
    const next = { ...wanted, ...part };
    replaceQuery(address.micrographs({ ...next, sort: next.sort === "-time" ? "" : next.sort }));
  };

  useEffect(() => {
    const slash = (event: KeyboardEvent) => {
      if (event.key !== "/" || event.target instanceof HTMLInputElement) return;
      event.preventDefault();
      search.current?.focus();
    };
    document.addEventListener("keydown", slash);
    document.querySelector<HTMLElement>(".grid")?.focus({ preventScroll: true });
    return () => document.removeEventListener("keydown", slash);
  }, []);

  const down = wanted.sort.startsWith("-");
  const sortName = wanted.sort.replace(/^-/, "");
  const quantities = selection.value?.quantities ?? [];
  return (
    <main class="gallery" id="main">
      <h1 class="visually-hidden">Micrographs</h1>
      <form class="gallery-bar" role="search" onSubmit={(event) => event.preventDefault()}>
        <input
          ref={search}
          type="search"
          placeholder="Search names and folders ( / )"
          aria-label="Search names and folders"
          value={wanted.search}
          onInput={(event) => change({ search: event.currentTarget.value })}
        />
        <label>
          <span class="label">Show</span>
          <select value={wanted.state} onChange={(event) => change({ state: event.currentTarget.value })}>
            {FILTERS.map(([state, words]) => (
              <option key={state} value={state}>{`${words} (${count(counts.get(state) ?? 0)})`}</option>
            ))}
          </select>
        </label>
        <label>
          <span class="label">Sort by</span>
          <select
            value={sortName}
            onChange={(event) => change({ sort: (down ? "-" : "") + event.currentTarget.value })}
          >
            <option value="time">Time</option>
            <option value="name">Name</option>
            {quantities.map((one) => (
              <option key={one.name} value={one.name}>{one.label}</option>
            ))}
          </select>
        </label>
        <button
          type="button"
          class="icon-button bordered"
          aria-label={down ? "Descending; turn round" : "Ascending; turn round"}
          title={down ? "Descending" : "Ascending"}
          onClick={() => change({ sort: (down ? "" : "-") + sortName })}
        >
          <svg viewBox="0 0 16 16" aria-hidden="true">
            <path d={down ? "M8 3V13M4 9 8 13 12 9" : "M8 13V3M4 7 8 3 12 7"} />
          </svg>
        </button>
        <fieldset class="segmented sizes">
          <legend class="visually-hidden">Size of the pictures</legend>
          {(Object.keys(SIZES) as Size[]).map((name) => (
            <label key={name} title={name}>
              <input
                type="radio"
                name="size"
                checked={size === name}
                onChange={() => setSize((lastSize = name))}
                aria-label={name}
              />
              <span aria-hidden="true">{name[0]!.toUpperCase()}</span>
            </label>
          ))}
        </fieldset>
        {wanted.only && (
          <button type="button" class="button chip" onClick={() => change({ only: "" })}>
            highlighted only ✕
          </button>
        )}
        <span class="gallery-count" role="status">
          {items.length === columns.length ? count(items.length) : `${count(items.length)} of ${count(columns.length)}`}
        </span>
      </form>
      {items.length === 0 ? (
        <p class="empty">{columns.length === 0 ? "No movie has arrived yet." : "No micrograph is like that."}</p>
      ) : (
        <Grid items={items} size={SIZES[size]} listKey={key} />
      )}
      <p class="key-help" aria-hidden="true">
        <kbd>←↑↓→</kbd> move <kbd>Enter</kbd> open
        {!readonly.value && (
          <>
            <kbd>i</kbd> include <kbd>e</kbd> exclude <kbd>u</kbd> undecide <kbd>r</kbd> retry failed
          </>
        )}
        <kbd>Shift</kbd> several <kbd>/</kbd> search
      </p>
    </main>
  );
}
