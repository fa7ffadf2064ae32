/** Numbers and settings beside a micrograph. */
import { useState } from "preact/hooks";
import { comparisonAddress, picture } from "../data/api";
import { columns } from "../data/columns";
import { selection } from "../data/store";
import type { ItemDetails } from "../data/types";
import { bytes, duration, moment, number, quantity, settingText } from "../ui/format";

export function SpectrumPanel({ item }: { item: ItemDetails }) {
  const [missing, setMissing] = useState("");
  return (
    <section class="panel" aria-label="Power spectrum">
      <header class="panel-head">
        <h2>Power spectrum <span class="unit">left data, right fit</span></h2>
      </header>
      {item.outputs.includes("powerspectrum") && missing !== item.revision ? (
        <img
          class="spectrum"
          src={picture(item.id, "powerspectrum", item.revision)}
          alt="Left half: measured power spectrum. Right half: the fitted CTF."
          width={512}
          height={512}
          onError={() => setMissing(item.revision)}
        />
      ) : (
        <p class="empty small">No fit.</p>
      )}
    </section>
  );
}

/** Fetched when it is opened: it is made from two whole micrographs. */
export function ComparisonPanel({ item }: { item: ItemDetails }) {
  const [open, setOpen] = useState(false);
  return (
    <section class="panel" aria-label="Before and after preprocessing">
      <details class="comparison" open={open} onToggle={(event) => setOpen(event.currentTarget.open)}>
        <summary>Before and after preprocessing</summary>
        {open && (
          <a href={comparisonAddress(item.id, item.revision)} target="_blank" rel="noreferrer">
            <img
              class="spectrum"
              src={comparisonAddress(item.id, item.revision)}
              alt="Left: the average and its power spectrum. Right: the preprocessed micrograph and its power spectrum."
            />
          </a>
        )}
      </details>
    </section>
  );
}

/** Where a value lies among all micrographs of the session. */
function Rank({ name, value }: { name: string; value: number }) {
  let below = 0;
  let n = 0;
  for (const other of columns.column(name)?.values ?? []) {
    if (Number.isNaN(other)) continue;
    n++;
    if (other < value) below++;
  }
  if (n < 5) return null;
  const part = below / Math.max(1, n - 1);
  return (
    <span class="rank" title={`higher than ${Math.round(100 * part)} % of the session`} aria-hidden="true">
      <span style={{ left: `${(100 * Math.min(1, part)).toFixed(1)}%` }} />
    </span>
  );
}

export function MetricsPanel({ item }: { item: ItemDetails }) {
  void columns.version.value;
  const index = columns.at.get(item.id) ?? -1;
  const shown = [...columns.metrics.values()].filter((column) => !Number.isNaN(column.values[index] ?? Number.NaN));
  const chosen = selection.value;
  return (
    <section class="panel" aria-label="Metrics">
      <header class="panel-head">
        <h2>Metrics <span class="unit">and their place in the session</span></h2>
      </header>
      <table class="metrics-table">
        <tbody>
          {shown.map((column) => {
            const value = column.values[index]!;
            const [low, high] = chosen?.ranges[column.name] ?? [null, null];
            const outside = (low !== null && value < low) || (high !== null && value > high);
            return (
              <tr key={column.name} class={outside ? "outside" : ""}>
                <th scope="row">{column.label}</th>
                <td class="num">
                  {quantity(value, column.unit)}
                  {outside && <span class="visually-hidden"> outside the accepted range</span>}
                </td>
                <td><Rank name={column.name} value={value} /></td>
              </tr>
            );
          })}
        </tbody>
      </table>
      {shown.length === 0 && <p class="empty small">Nothing has been measured.</p>}
    </section>
  );
}

export function FilePanel({ item }: { item: ItemDetails }) {
  const [frames, ny, nx] = item.shape ?? [];
  const rows: [string, string][] = [
    ["File", item.source],
    ["Size", bytes(item.size)],
    ["Frames", item.shape ? `${frames} of ${nx}×${ny}` : ""],
    ["Pixel size", item.pixel_size ? quantity(item.pixel_size, "Å") : ""],
    ["Written", moment(item.time)],
    ["Processed", item.processed === null ? "" : moment(item.processed)],
  ];
  return (
    <section class="panel" aria-label="File">
      <header class="panel-head"><h2>File</h2></header>
      <table class="file-table">
        <tbody>
          {rows.map(([name, value]) => value && (
            <tr key={name}><th scope="row">{name}</th><td class="wrap">{value}</td></tr>
          ))}
        </tbody>
      </table>
      {item.notes.length > 0 && <ul class="item-notes">{item.notes.map((note) => <li key={note}>{note}</li>)}</ul>}
    </section>
  );
}

export function StepsPanel({ item }: { item: Pick<ItemDetails, "steps"> }) {
  return (
    <section class="panel" aria-label="Steps and their settings">
      <header class="panel-head"><h2>Steps <span class="unit">and the settings they used</span></h2></header>
      {item.steps.map((step) => (
        <details key={step.name} class="step">
          <summary>
            <span class="step-name">{step.name}</span>
            <span class={`step-state step-${step.state}`}>{step.state}</span>
            <span class="muted num">{step.seconds === null ? "" : duration(step.seconds)}</span>
          </summary>
          {step.reason && <p class="small">{step.reason}</p>}
          {Object.entries(step.settings).map(([section, values]) => (
            <table key={section} class="settings-used">
              <caption>{section}</caption>
              <tbody>
                {Object.entries(values).map(([name, value]) => (
                  <tr key={name}>
                    <th scope="row">{name}</th>
                    <td class="wrap">{typeof value === "number" ? number(value, 6) : settingText(value) || "none"}</td>
                  </tr>
                ))}
              </tbody>
            </table>
          ))}
        </details>
      ))}
    </section>
  );
}
