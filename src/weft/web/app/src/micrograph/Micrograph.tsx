/** One micrograph: what it looks like, what was measured, and why it is good or not. */
import { useEffect, useState } from "preact/hooks";
import { api, ApiError } from "../data/api";
import { columns } from "../data/columns";
import { arrived, connection, decide, readonly, retry } from "../data/store";
import type { ItemDetails } from "../data/types";
import { lastList, reasons } from "../gallery/list";
import { address, go, route } from "../router";
import { count } from "../ui/format";
import { useFetched, useKeys } from "../ui/hooks";
import { StateBadge, VerdictBadge } from "../ui/states";
import { teaching } from "./controls";
import { CurvePanel } from "./CurvePanel";
import { ComparisonPanel, FilePanel, MetricsPanel, SpectrumPanel, StepsPanel } from "./panels";
import { TeachPanel } from "./TeachPanel";
import { TracksPanel } from "./Tracks";
import { ViewerPanel } from "./ViewerPanel";

interface Loaded {
  item: ItemDetails | null;
  error: string;
}

function useItem(id: string): Loaded & { again: () => void } {
  const [loaded, setLoaded] = useState<Loaded>({ item: null, error: "" });
  const [turn, setTurn] = useState(0);
  const news = arrived.value.find((item) => item.id === id);
  const live = connection.value === "live";
  useEffect(() => {
    const controller = new AbortController();
    api.item(id, controller.signal).then(
      (item) => setLoaded({ item, error: "" }),
      (error: unknown) => {
        if (controller.signal.aborted) return;
        const gone = error instanceof ApiError && error.status === 404;
        // while the server is away, what was there stays
        if (gone) setLoaded({ item: null, error: `There is no micrograph ${id} in this session.` });
        else setLoaded((before) => ({ ...before, error: (error as Error).message }));
      },
    );
    return () => controller.abort();
  }, [id, news, live, turn]);
  return { ...loaded, again: () => setTurn(turn + 1) };
}

/** Neighbours in the list that the person came from, in time otherwise. */
function neighbours(id: string): { before: string | undefined; after: string | undefined; place: number; of: number } {
  let ids = lastList.ids;
  let at = ids.indexOf(id);
  if (at < 0) {
    ids = columns.order().map((index) => columns.ids[index]!);
    at = ids.indexOf(id);
  }
  return { before: ids[at - 1], after: at < 0 ? undefined : ids[at + 1], place: at, of: ids.length };
}

function Panels({ item }: { item: ItemDetails }) {
  const has = (output: string) => item.outputs.includes(output);
  const { id, revision } = item;
  const curve = useFetched(has("powerspectrum_curve") ? (signal) => api.curve(id, signal) : null, [id, revision]);
  const tracks = useFetched(has("average") ? (signal) => api.tracks(id, signal) : null, [id, revision]);
  const resolution = columns.column("resolution")?.values[columns.at.get(id) ?? -1] ?? Number.NaN;
  return (
    <div class="item-side">
      {teaching.value && <TeachPanel />}
      <SpectrumPanel item={item} />
      {has("preprocessed") && <ComparisonPanel item={item} />}
      {curve.data && <CurvePanel curve={curve.data} resolution={resolution} />}
      {tracks.data && <TracksPanel tracks={tracks.data} />}
      <MetricsPanel item={item} />
      <FilePanel item={item} />
      <StepsPanel item={item} />
    </div>
  );
}

export function Micrograph() {
  const { id } = route.value;
  void columns.version.value;
  const { item, error, again } = useItem(id);
  const [retrying, setRetrying] = useState("");
  const { before, after, place, of } = neighbours(id);
  const index = columns.at.get(id) ?? -1;
  const turn = (to: string | undefined) => to !== undefined && go(address.micrograph(to));
  useKeys({
    "[": () => turn(before),
    "]": () => turn(after),
    i: () => void decide([id], "include"),
    e: () => void decide([id], "exclude"),
    u: () => void decide([id], null),
  });
  useEffect(() => setRetrying(""), [item?.state, item?.revision]);

  if (!item || item.id !== id) {
    return (
      <main class="micrograph" id="main" aria-busy={!error}>
        {error && (
          <div class="notice notice-error" role="alert">
            <p>{error}</p>
            <button type="button" class="button" onClick={again}>Ask again</button>
          </div>
        )}
      </main>
    );
  }
  const why = index >= 0 && item.state === "done" ? reasons(index) : [];
  const failure = item.error ?? (item.state === "failed" ? item.reason : "");
  const manual = columns.manual[index] ?? null;
  const choice = (label: string, key: "include" | "exclude" | null, hint: string) => (
    <button
      type="button"
      class={`button${manual === key ? " on" : ""}`}
      aria-pressed={manual === key}
      title={hint}
      onClick={() => void decide([id], key)}
    >
      {label}
    </button>
  );
  return (
    <main class="micrograph" id="main">
      <header class="item-bar">
        <div class="turn">
          <button type="button" class="icon-button bordered" aria-label="Previous micrograph" title="Previous ( [ )" disabled={!before} onClick={() => turn(before)}>
            <svg viewBox="0 0 16 16" aria-hidden="true"><path d="M10 3 5 8 10 13" /></svg>
          </button>
          <button type="button" class="icon-button bordered" aria-label="Next micrograph" title="Next ( ] )" disabled={!after} onClick={() => turn(after)}>
            <svg viewBox="0 0 16 16" aria-hidden="true"><path d="M6 3 11 8 6 13" /></svg>
          </button>
        </div>
        <h1>{item.name}</h1>
        <span class="muted small">{place >= 0 ? `${count(place + 1)} of ${count(of)}` : ""}</span>
        <StateBadge state={item.state} />
        {item.state === "done" && index >= 0 && (
          <VerdictBadge selected={columns.selected[index]!} manual={manual} />
        )}
        {why.length > 0 && <span class="verdict-out small">{why.join(", ")}</span>}
        {item.state === "stale" && <span class="state-stale small">{item.reason}</span>}
        {!readonly.value && (
          <div class="decide" role="group" aria-label="Decision by hand">
            {choice("Include", "include", "i")}
            {choice("Exclude", "exclude", "e")}
            {choice("By ranges", null, "u")}
          </div>
        )}
      </header>
      {error && <div class="notice notice-warning" role="alert"><p>{error}</p></div>}
      {failure && (
        <div class="notice notice-error item-error" role="alert">
          <svg viewBox="0 0 16 16" aria-hidden="true"><path d="M8 1.5A6.5 6.5 0 1 0 8.01 1.5ZM8 4.5V9M8 11V11.5" /></svg>
          <p>{item.step ? `${item.step}: ` : ""}{failure}</p>
          {!readonly.value && (
            <button
              type="button"
              class="button primary"
              disabled={retrying === id}
              onClick={() => {
                setRetrying(id);
                void retry([id]).then((done) => !done && setRetrying(""));
              }}
            >
              {retrying === id ? "Waiting" : "Retry"}
            </button>
          )}
        </div>
      )}
      <div class="item-layout">
        <ViewerPanel item={item} />
        <Panels item={item} />
      </div>
    </main>
  );
}
