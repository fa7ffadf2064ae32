/** All settings as a form; it says what becomes stale before anything is changed. */
import { useEffect, useState } from "preact/hooks";
import { api, ApiError } from "../data/api";
import { complain, ofTilts, readonly, say, settingsVersion } from "../data/store";
import type { Preview, Section } from "../data/types";
import { count, plural, settingText } from "../ui/format";
import { useSettled } from "../ui/hooks";
import { FieldRow } from "./FieldRow";

type Draft = Record<string, string>;

/** What was typed survives a look at another view. */
let kept: Draft = {};

function stale(preview: Preview): string {
  if (preview.items === 0) return "No result becomes stale.";
  const steps = Object.entries(preview.steps).filter(([, n]) => n > 0).map(([step, n]) => `${step} of ${count(n)}`);
  return `${plural(preview.items, ofTilts.value ? "item" : "micrograph")} will be processed again: ${steps.join(", ")}.`;
}

function usePreview(changes: Draft): { preview: Preview | null; problem: string; fresh: boolean } {
  const settled = useSettled(changes, 350);
  const key = JSON.stringify(settled);
  const [found, setFound] = useState<{ preview: Preview | null; problem: string; key: string }>({
    preview: null,
    problem: "",
    key: "",
  });
  useEffect(() => {
    if (Object.keys(settled).length === 0) {
      setFound({ preview: null, problem: "", key });
      return;
    }
    let current = true;
    api.preview(settled).then(
      (preview) => current && setFound({ preview, problem: "", key }),
      (error: Error) => current && setFound({ preview: null, problem: error.message, key }),
    );
    return () => {
      current = false;
    };
  }, [key, settingsVersion.value]);
  return { preview: found.preview, problem: found.problem, fresh: found.key === JSON.stringify(changes) };
}

export function Settings() {
  const [sections, setSections] = useState<Section[]>([]);
  const [draft, setDraftState] = useState<Draft>(kept);
  const [refused, setRefused] = useState<Draft>({});
  const [search, setSearch] = useState("");
  const [busy, setBusy] = useState(false);
  const setDraft = (next: Draft) => {
    kept = next;
    setDraftState(next);
    setRefused({});
  };

  useEffect(() => {
    api.settings().then((found) => setSections(found.sections), complain);
  }, [settingsVersion.value]);

  const stored = new Map(sections.flatMap((section) => section.fields).map((field) => [field.key, settingText(field.value)]));
  const changes: Draft = {};
  for (const [key, text] of Object.entries(draft)) if (stored.has(key) && stored.get(key) !== text) changes[key] = text;
  const n = Object.keys(changes).length;
  const { preview, problem, fresh } = usePreview(changes);
  const errors: Draft = n === 0 ? {} : { ...preview?.errors, ...refused };
  const wrong = Object.keys(errors).length;

  async function apply(): Promise<void> {
    setBusy(true);
    try {
      const found = await api.apply(changes);
      if (found?.sections) setSections(found.sections);
      else settingsVersion.value++;
      setDraft({});
      say("Settings changed; what became stale is processed again.");
    } catch (error) {
      if (error instanceof ApiError && Object.keys(error.errors).length > 0) setRefused(error.errors);
      else complain(error);
    } finally {
      setBusy(false);
    }
  }

  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = (text: string) => words.every((word) => text.toLowerCase().includes(word));
  const shown = sections
    .map((section) => ({
      ...section,
      fields: section.fields.filter((field) => wanted(`${field.key} ${field.description}`)),
    }))
    .filter((section) => section.fields.length > 0);
  return (
    <main class="settings" id="main">
      <nav class="settings-nav" aria-label="Sections">
        <input
          type="search"
          placeholder="Search settings"
          aria-label="Search settings"
          value={search}
          onInput={(event) => setSearch(event.currentTarget.value)}
        />
        <ul>
          {shown.map((section) => (
            <li key={section.name}>
              <button
                type="button"
                class="link"
                onClick={() => document.getElementById(`section-${section.name}`)?.scrollIntoView({ block: "start" })}
              >
                {section.name}
                {section.fields.some((field) => field.key in changes) && (
                  <span class="dot-changed"><span class="visually-hidden"> changed</span></span>
                )}
              </button>
            </li>
          ))}
        </ul>
      </nav>
      <div class="settings-body">
        <h1 class="visually-hidden">Settings</h1>
        {readonly.value && <p class="notice notice-advice">This address may only look: settings cannot be changed here.</p>}
        {sections.length > 0 && shown.length === 0 && <p class="empty">No setting is called that.</p>}
        {shown.map((section) => (
          <section key={section.name} class="panel settings-section" id={`section-${section.name}`} aria-label={section.name}>
            <header class="panel-head"><h2>{section.name}</h2></header>
            {section.description && <p class="section-help">{section.description}</p>}
            {section.fields.map((field) => (
              <FieldRow
                key={field.key}
                field={field}
                draft={draft[field.key]}
                error={errors[field.key]}
                disabled={readonly.value || busy}
                onChange={(text) => setDraft({ ...draft, [field.key]: text })}
              />
            ))}
          </section>
        ))}
      </div>
      {n > 0 && !readonly.value && (
        <div class="settings-bar" role="region" aria-label="Changes">
          <div role="status">
            <strong>{plural(n, "change")}</strong>{" "}
            {wrong > 0
              ? `${plural(wrong, "value")} not allowed: ${Object.keys(errors).join(", ")}`
              : problem || (preview && fresh ? stale(preview) : "Looking what becomes stale")}
          </div>
          <button type="button" class="button" disabled={busy} onClick={() => setDraft({})}>Discard</button>
          <button
            type="button"
            class="button primary"
            disabled={busy || wrong > 0 || !fresh || !preview}
            onClick={() => void apply()}
          >
            Apply
          </button>
        </div>
      )}
    </main>
  );
}
