/** Whose picks are shown, how many, and the buttons that change them. */
import type { ComponentChildren } from "preact";
import { count, plural } from "../ui/format";
import { leastScores, picker, teaching } from "./controls";
import { MANUAL, type PickEditor } from "./usePicks";

interface Props {
  editor: PickEditor;
  editing: boolean;
  disabled: boolean;
  error: string;
  switches: ComponentChildren;
  onEdit: (on: boolean) => void;
}

const wordsFor = (name: string): string => (name === MANUAL ? "by hand" : name || "nobody");

/** The pickers of this micrograph, and the one that is shown. */
function PickerChoice({ editor }: { editor: PickEditor }) {
  const names = [...new Set([...editor.pickers, editor.picker])].filter(Boolean);
  return (
    <label class="picker-choice" title={editor.changed ? "Save or revert what you have changed first" : undefined}>
      <span class="label">Picks of</span>
      <select
        aria-label="Whose picks"
        value={editor.picker}
        disabled={editor.changed || names.length === 0}
        onChange={(event) => (picker.value = event.currentTarget.value)}
      >
        {names.map((name) => <option key={name} value={name}>{wordsFor(name)}</option>)}
      </select>
    </label>
  );
}

function LeastScore({ editor }: { editor: PickEditor }) {
  if (!editor.scores) return null;
  const [low, high] = editor.scores;
  const value = Math.min(high, Math.max(low, leastScores.value[editor.picker] ?? low));
  const digits = Math.max(0, 1 - Math.floor(Math.log10(high - low)));
  return (
    <label class="slider least-score" title="Hides picks with lower scores; saving leaves them out">
      <span class="label">Score from</span>
      <input
        type="range"
        aria-label="Least score"
        min={low}
        max={high}
        step="any"
        value={value}
        onInput={(event) => {
          const given = event.currentTarget.valueAsNumber;
          // at its left end nothing is hidden, here or elsewhere
          const least = given - low < 1e-3 * (high - low) ? -Infinity : given;
          leastScores.value = { ...leastScores.value, [editor.picker]: least };
        }}
      />
      <output>{value.toFixed(Math.min(4, digits))}</output>
    </label>
  );
}

export function PickBar({ editor, editing, disabled, error, switches, onEdit }: Props) {
  const number = editor.picks.length;
  const hidden = editor.total - number;
  return (
    <div class="pick-bar" role="group" aria-label="Picks">
      {switches}
      <PickerChoice editor={editor} />
      <LeastScore editor={editor} />
      <span role="status" class="pick-number">
        <strong>{plural(number, "pick")}</strong>
        {hidden > 0 && <span class="muted"> of {count(editor.total)}</span>}
        {editor.changed && <span class="unsaved"> not saved</span>}
      </span>
      {error && <span class="field-error">{error}</span>}
      {!disabled && (
        <>
          <label class="pick-diameter">
            <span class="label">Diameter</span>
            <input
              type="text"
              inputMode="decimal"
              aria-label="Diameter of the particles in Å"
              value={editor.diameter === null ? "" : Math.round(editor.diameter * 10) / 10}
              placeholder="–"
              onChange={(event) => {
                const value = Number.parseFloat(event.currentTarget.value);
                editor.setDiameter(value > 0 ? value : null);
              }}
            />
            <span class="unit">Å</span>
          </label>
          <button type="button" class={`button${editing ? " on" : ""}`} aria-pressed={editing} onClick={() => onEdit(!editing)}>
            {editing ? "Stop editing" : "Edit picks"}
          </button>
          {(editing || editor.changed) && (
            <>
              <button type="button" class="button" disabled={!editor.canUndo} onClick={() => editor.undo()}>Undo</button>
              <button type="button" class="button" disabled={!editor.changed} onClick={() => editor.revert()}>Revert</button>
              <button
                type="button"
                class="button primary"
                title={`Keeps the ${count(number)} that are shown as picked by hand`}
                disabled={!editor.changed && hidden === 0 && editor.picker === MANUAL}
                onClick={() => void editor.save()}
              >
                Save picks
              </button>
            </>
          )}
          <button type="button" class={`button${teaching.value ? " on" : ""}`} aria-pressed={teaching.value} onClick={() => (teaching.value = !teaching.value)}>
            Teach the picker
          </button>
          {editing && <span class="muted small">Click adds or removes one; the a key does it at the crosshair.</span>}
        </>
      )}
    </div>
  );
}
