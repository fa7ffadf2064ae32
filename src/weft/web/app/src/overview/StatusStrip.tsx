/** The session at a glance: one line that a person reads from across the room. */
import { columns } from "../data/columns";
import { ofTilts, readonly, status, togglePause } from "../data/store";
import type { Counts, State } from "../data/types";
import { address } from "../router";
import { bytes, count, DASH, duration, number, plural } from "../ui/format";
import { Shape, STATES, STATE_WORDS } from "../ui/states";
import type { ComponentChildren } from "preact";

function Tile(props: { label: string; value: ComponentChildren; detail?: ComponentChildren; class?: string }) {
  return (
    <div class={`tile ${props.class ?? ""}`}>
      <dt>{props.label}</dt>
      <dd>
        <span class="tile-value">{props.value}</span>
        {props.detail && <span class="tile-detail">{props.detail}</span>}
      </dd>
    </div>
  );
}

const rate = (value: number | null): string => (value === null ? DASH : `${number(value)}/h`);

/** Parts of the whole, each with its shape, number and word; a click lists them. */
function StateBar({ items }: { items: Counts }) {
  const shown = STATES.filter((state) => items[state] > 0 || state === "done" || state === "failed");
  return (
    <div class="tile state-tile">
      <div class="state-bar" aria-hidden="true">
        {shown.map((state: State) => (
          <span key={state} class={`state-part state-${state}`} style={{ flexGrow: items[state] }} />
        ))}
      </div>
      <ul class="state-links">
        {shown.map((state) => (
          <li key={state}>
            <a href={address.micrographs({ state })} class={`state-link state-${state}`}>
              <Shape of={state} />
              {count(items[state])} {STATE_WORDS[state]}
            </a>
          </li>
        ))}
      </ul>
    </div>
  );
}

/** Of the tilts alone: the server counts their series with them. */
function movieCounts(all: Counts): Counts {
  void columns.version.value;
  const found: Counts = { ...all, total: columns.length, done: 0, failed: 0, stale: 0, new: 0, processing: 0, selected: 0 };
  for (let index = 0; index < columns.length; index++) {
    found[columns.state[index]!]++;
    if (columns.selected[index]) found.selected++;
  }
  return found;
}

export function StatusStrip() {
  const now = status.value;
  if (!now) return <div class="status-strip loading" aria-busy="true" />;
  const { disk } = now;
  const items = ofTilts.value ? movieCounts(now.items) : now.items;
  const busy = now.workers.filter((worker) => worker.item !== null);
  const used = disk.total > 0 ? 1 - disk.free / disk.total : 0;
  const recent = now.throughput.recent_per_hour;
  return (
    <section class="status-strip" aria-label="Session">
      <dl class="tiles">
        <Tile
          label="Throughput"
          value={rate(recent ?? now.throughput.per_hour)}
          detail={recent === null ? undefined : `${rate(now.throughput.per_hour)} overall`}
        />
        <Tile label="Backlog" value={count(now.backlog)} detail={plural(items.total, ofTilts.value ? "tilt" : "micrograph")} />
        <Tile label="Time left" value={now.backlog > 0 ? duration(now.time_left_s) : DASH} />
        <Tile
          label="Selected"
          value={count(items.selected)}
          detail={items.done > 0 ? `${Math.round((100 * items.selected) / Math.max(1, items.total))} %` : undefined}
        />
        <Tile
          label="Disk free"
          class={used > 0.95 ? "tile-warn" : ""}
          value={bytes(disk.free)}
          detail={<meter min={0} max={1} value={used} aria-label="Part of the disk that is used" />}
        />
        <div class="tile">
          <dt>Workers</dt>
          <dd>
            <details class="popover">
              <summary>
                <span class="tile-value">{`${busy.length}/${now.workers.length}`}</span>
                <span class="tile-detail">busy</span>
              </summary>
              <ul class="popover-body worker-list">
                {now.workers.length === 0 && <li>No workers.</li>}
                {now.workers.map((worker) => (
                  <li key={worker.name}>
                    <span class="worker-name">{worker.name}</span>
                    <span>{worker.item ?? worker.state}</span>
                    <span class="muted">{worker.item ? duration(worker.seconds) : ""}</span>
                  </li>
                ))}
              </ul>
            </details>
          </dd>
        </div>
      </dl>
      <StateBar items={items} />
      <div class="status-actions">
        <span class={`watching ${now.watching ? "on" : ""}`}>
          <span class="dot" aria-hidden="true" />
          {now.paused ? `Paused: ${now.paused}` : now.watching ? "Watching for movies" : "Not watching for movies"}
        </span>
        {!readonly.value && (
          <button type="button" class="button" onClick={() => void togglePause()}>
            {now.paused ? "Resume" : "Pause"}
          </button>
        )}
      </div>
    </section>
  );
}
