/** What needs a person: alerts, advice for the acquisition, files that are waiting. */
import { columns } from "../data/columns";
import { brushed } from "../data/highlight";
import { advice, status } from "../data/store";
import { address, go } from "../router";
import { plural } from "../ui/format";

function indices(names: string[]): number[] {
  return names.map((name) => columns.at.get(name) ?? -1).filter((index) => index >= 0);
}

function Evidence({ evidence }: { evidence: Record<string, unknown> }) {
  const entries = Object.entries(evidence).filter(([, value]) => typeof value !== "object");
  if (entries.length === 0) return null;
  return (
    <span class="notice-evidence">
      {entries.map(([name, value]) => `${name.replaceAll("_", " ")}: ${String(value)}`).join(" · ")}
    </span>
  );
}

export function Notices() {
  const alerts = status.value?.alerts ?? [];
  const waiting = status.value?.waiting ?? [];
  if (alerts.length + advice.value.length + waiting.length === 0) return null;
  return (
    <section class="notices" aria-label="Alerts" aria-live="polite">
      {alerts.map((alert) => (
        <div key={alert.id} class={`notice notice-${alert.level}`}>
          <svg viewBox="0 0 16 16" aria-hidden="true">
            {alert.level === "error" ? <path d="M8 1.5A6.5 6.5 0 1 0 8.01 1.5ZM8 4.5V9M8 11V11.5" /> : <path d="M8 2 14.5 13.5H1.5ZM8 6.5V10M8 11.5V12" />}
          </svg>
          <span class="visually-hidden">{alert.level}: </span>
          <p>{alert.text}</p>
          {alert.items.length > 0 && (
            <span class="notice-actions">
              <button type="button" class="link" onClick={() => (brushed.value = indices(alert.items))}>
                Highlight {plural(alert.items.length, "micrograph")}
              </button>
              <button
                type="button"
                class="link"
                onClick={() => {
                  brushed.value = indices(alert.items);
                  go(address.micrographs({ only: "highlighted" }));
                }}
              >
                Show
              </button>
            </span>
          )}
        </div>
      ))}
      {advice.value.map((one, index) => (
        <div key={`advice-${index}`} class="notice notice-advice">
          <svg viewBox="0 0 16 16" aria-hidden="true"><path d="M8 2A4 4 0 0 1 10 9.5V11H6V9.5A4 4 0 0 1 8 2ZM6.5 13.5H9.5" /></svg>
          <p>
            <span class="visually-hidden">advice: </span>
            {one.text} <Evidence evidence={one.evidence} />
          </p>
        </div>
      ))}
      {waiting.length > 0 && (
        <details class="notice notice-waiting">
          <summary>{plural(waiting.length, "file")} not taken yet</summary>
          <ul>
            {waiting.map((file) => (
              <li key={file.name}>
                <span class="file-name">{file.name}</span> <span class="muted">{file.reason}</span>
              </li>
            ))}
          </ul>
        </details>
      )}
    </section>
  );
}
