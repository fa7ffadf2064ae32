/** The session as a whole: its state, what is wrong, and every metric over time. */
import { useState } from "preact/hooks";
import { columns } from "../data/columns";
import { axis, zoom } from "../data/highlight";
import { selection } from "../data/store";
import type { Quantity } from "../data/types";
import { astigmatismVectors } from "../plots/scatter";
import { AstigmatismPanel } from "./AstigmatismPanel";
import { BrushBar } from "./BrushBar";
import { HoverCard } from "./HoverCard";
import { MetricPanel } from "./MetricPanel";
import { Notices } from "./Notices";
import { StatusStrip } from "./StatusStrip";

/** Parts of vectors are shown as vectors. */
const HIDDEN = new Set(["astigmatism_x", "astigmatism_y", "astigmatism_angle", "tilt_axis"]);

/** Where the plot of two rows stands among those of one. */
const BEFORE_ASTIGMATISM = 3;

const measured = (name: string): boolean => columns.column(name)?.values.some((value) => !Number.isNaN(value)) ?? false;

/** A quantity that is the same for all tells nothing over time. */
function varies(name: string): boolean {
  const values = columns.column(name)?.values ?? [];
  const first = values.find((value) => !Number.isNaN(value));
  return first !== undefined && values.some((value) => !Number.isNaN(value) && value !== first);
}

function Toolbar() {
  return (
    <div class="plot-toolbar">
      <fieldset class="segmented">
        <legend class="visually-hidden">What the plots run along</legend>
        {(["order", "time"] as const).map((kind) => (
          <label key={kind}>
            <input type="radio" name="axis" checked={axis.value === kind} onChange={() => (axis.value = kind)} />
            <span>{kind === "order" ? "by order" : "by time"}</span>
          </label>
        ))}
      </fieldset>
      <fieldset class="segmented">
        <legend class="visually-hidden">How far back the plots go</legend>
        {[0, 1000, 200].map((last) => {
          const now = zoom.value;
          const on = last === 0 ? now === null : now !== null && "last" in now && now.last === last;
          return (
            <label key={last}>
              <input
                type="radio"
                name="stretch"
                checked={on}
                disabled={last > 0 && last >= columns.length}
                onChange={() => (zoom.value = last === 0 ? null : { last })}
              />
              <span>{last === 0 ? "all" : `last ${last}`}</span>
            </label>
          );
        })}
      </fieldset>
      {zoom.value && "from" in zoom.value && <button type="button" class="button" onClick={() => (zoom.value = null)}>Show all</button>}
      <p class="muted hint">
        Drag over points to highlight them everywhere, click one to open it, drag a line to set what is accepted.
      </p>
      <p class="legend" aria-hidden="true">
        <span class="key key-good" /> selected <span class="key key-bad" /> not selected{" "}
        <span class="key key-mark" /> highlighted
      </p>
    </div>
  );
}

export function Overview() {
  const [more, setMore] = useState(false);
  void columns.version.value;
  if (!columns.loaded.value) return <main class="overview" aria-busy="true" />;
  const quantities = selection.value?.quantities ?? [];
  const filters = new Set(quantities.map((one) => one.name));
  const few = columns.length < 3;
  const shown = quantities.filter((one) => measured(one.name) || selection.value?.ranges[one.name]);
  const main = shown.filter((one) => few || varies(one.name) || selection.value?.ranges[one.name]);
  const others = [
    ...shown.filter((one) => !main.includes(one)),
    ...[...columns.metrics.values()].filter(
      (one) => !filters.has(one.name) && !HIDDEN.has(one.name) && measured(one.name),
    ),
  ];
  const panel = (one: Quantity) => (
    <MetricPanel key={one.name} name={one.name} label={one.label} unit={one.unit} quantity={one} />
  );
  return (
    <main class="overview" id="main" tabIndex={-1}>
      <h1 class="visually-hidden">Overview</h1>
      <StatusStrip />
      <Notices />
      {main.length + others.length === 0 ? (
        <p class="empty">
          Nothing has been measured yet. As soon as the first movie is processed, its numbers appear here.
        </p>
      ) : (
        <>
          <Toolbar />
          <div class="metrics">
            {main.slice(0, BEFORE_ASTIGMATISM).map(panel)}
            {astigmatismVectors() && <AstigmatismPanel />}
            {main.slice(BEFORE_ASTIGMATISM).map(panel)}
            {more &&
              others.map((one) => (
                <MetricPanel
                  key={one.name}
                  name={one.name}
                  label={one.label}
                  unit={one.unit}
                  quantity={quantities.find((quantity) => quantity.name === one.name)}
                />
              ))}
          </div>
          {others.length > 0 && (
            <button type="button" class="button more" aria-expanded={more} onClick={() => setMore(!more)}>
              {more ? "Fewer metrics" : `${others.length} more metrics`}
            </button>
          )}
        </>
      )}
      <BrushBar />
      <HoverCard />
    </main>
  );
}
