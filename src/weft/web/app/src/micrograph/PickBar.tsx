/** Picks in numbers, and the buttons that change them. */
import type { ComponentChildren } from "preact";
import { plural } from "../ui/format";
import type { PickEditor } from "./usePicks";

interface Props {
  editor: PickEditor;
  editing: boolean;
  disabled: boolean;
  error: string;
  switches: ComponentChildren;
  onEdit: (on: boolean) => void;
}

export function PickBar({ editor, editing, disabled, error, switches, onEdit }: Props) {
  return (
    <div class="pick-bar" role="group" aria-label="Picks">
      {switches}
      <span role="status">
        <strong>{plural(editor.picks.length, "pick")}</strong>
        {editor.edited && <span class="muted"> edited by hand</span>}
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
              value={editor.diameter ?? ""}
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
              <button type="button" class="button primary" disabled={!editor.changed} onClick={() => void editor.save()}>Save picks</button>
            </>
          )}
          {editing && <span class="muted small">Click adds or removes one; the a key does it at the crosshair.</span>}
        </>
      )}
    </div>
  );
}
