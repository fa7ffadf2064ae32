/** The stream of server-sent events; it reconnects by itself and catches up on what it missed. */
import { api, expired } from "./api";
import { columns } from "./columns";
import { connection, loadAdvice, loadAll, reloadColumns, settingsVersion, takeItems, takeSelection, takeStatus } from "./store";
import type { Alert, Item, SelectionEvent, Status } from "./types";

const FIRST_DELAY = 500;
const LONGEST_DELAY = 5000;
/** The server sends its status at least every 5 s: silence for longer means that the line is dead. */
const SILENCE = 20000;

let source: EventSource | null = null;
let delay = FIRST_DELAY;
let watchdog = 0;
let retryTimer = 0;
let loaded = false;
/** The first load does not wait for the stream: that saves a tenth of a second. */
let early: Promise<void> | null = null;

function heard(): void {
  window.clearTimeout(watchdog);
  watchdog = window.setTimeout(reconnect, SILENCE);
}

function reconnect(): void {
  source?.close();
  source = null;
  window.clearTimeout(watchdog);
  window.clearTimeout(retryTimer);
  if (expired.value) return;
  connection.value = loaded ? "reconnecting" : "connecting";
  retryTimer = window.setTimeout(connect, delay);
  delay = Math.min(delay * 2, LONGEST_DELAY);
}

function on<T>(target: EventSource, name: string, take: (data: T, version: number) => void): void {
  target.addEventListener(name, (event) => {
    heard();
    const { data, lastEventId } = event as MessageEvent<string>;
    take(JSON.parse(data) as T, Number(lastEventId.split("-").at(-1)));
  });
}

/**
 * A new connection begins with everything: the server may be another one, restarted, with other items.
 * Events that come while it loads are kept and applied after.
 */
function connect(): void {
  const stream = new EventSource("api/events");
  source = stream;
  let waiting: (() => void)[] | null = [];
  const whenLoaded = (action: () => void) => (waiting ? waiting.push(action) : action());

  stream.onopen = () => {
    heard();
    const load = early ?? loadAll();
    early = null;
    load.then(
      () => {
        if (source !== stream) return;
        for (const action of waiting ?? []) action();
        waiting = null;
        loaded = true;
        delay = FIRST_DELAY;
        connection.value = "live";
      },
      () => {
        if (source === stream) reconnect();
      },
    );
  };
  stream.onerror = () => {
    if (source !== stream) return;
    reconnect();
    // an EventSource does not tell its status: an ordinary request does
    api.status().catch(() => undefined);
  };
  let first = true;
  on<Status>(stream, "status", (found, version) =>
    whenLoaded(() => {
      takeStatus(found);
      // the columns may have been fetched before the stream began to tell changes
      if (first && version > columns.serverVersion) reloadColumns();
      first = false;
    }),
  );
  on<Item[] | { items: Item[] }>(stream, "items", (found) =>
    whenLoaded(() => takeItems(Array.isArray(found) ? found : found.items)),
  );
  // too much has changed to be told one by one
  on<unknown>(stream, "reset", () => whenLoaded(() => void loadAll().catch(() => undefined)));
  on<SelectionEvent>(stream, "selection", (found) => whenLoaded(() => takeSelection(found)));
  on<unknown>(stream, "settings", () => whenLoaded(() => settingsVersion.value++));
  on<Alert | Alert[]>(stream, "alert", () =>
    whenLoaded(() => {
      api.status().then(takeStatus).catch(() => undefined);
      void loadAdvice();
    }),
  );
}

export function start(): void {
  early = loadAll();
  early.catch(() => undefined);
  connect();
  // a laptop that wakes up must not wait for the watchdog
  window.addEventListener("online", () => connection.value !== "live" && connectNow());
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && connection.value === "reconnecting") connectNow();
  });
}

function connectNow(): void {
  if (expired.value) return;
  window.clearTimeout(retryTimer);
  source?.close();
  delay = FIRST_DELAY;
  connect();
}
