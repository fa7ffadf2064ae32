/** One setting: made from what its model says about itself. */
import type { Field } from "../data/types";
import { settingText } from "../ui/format";

interface Props {
  field: Field;
  /** As typed; undefined where it was not touched. */
  draft: string | undefined;
  error: string | undefined;
  disabled: boolean;
  onChange: (text: string) => void;
}

export function FieldRow({ field, draft, error, disabled, onChange }: Props) {
  const stored = settingText(field.value);
  const value = draft ?? stored;
  const preset = settingText(field.default);
  const changed = draft !== undefined && draft !== stored;
  const id = `field-${field.key}`;
  const common = {
    id,
    disabled,
    "aria-describedby": `${id}-help${error ? ` ${id}-error` : ""}`,
    "aria-invalid": error ? true : undefined,
  };
  let input;
  if (field.kind === "bool") {
    input = (
      <input
        {...common}
        type="checkbox"
        checked={value === "true"}
        onChange={(event) => onChange(String(event.currentTarget.checked))}
      />
    );
  } else if (field.kind === "choice") {
    const choices = field.choices.includes(value) ? field.choices : [value, ...field.choices];
    input = (
      <select {...common} value={value} onChange={(event) => onChange(event.currentTarget.value)}>
        {choices.map((choice) => <option key={choice} value={choice}>{choice || "none"}</option>)}
      </select>
    );
  } else {
    const numeric = field.kind === "int" || field.kind === "float";
    input = (
      <input
        {...common}
        type="text"
        inputMode={numeric ? "decimal" : "text"}
        class={numeric ? "numeric" : "wide"}
        value={value}
        placeholder={field.required ? "" : preset || "none"}
        spellcheck={false}
        autocomplete="off"
        onInput={(event) => onChange(event.currentTarget.value)}
      />
    );
  }
  return (
    <div class={`field${changed ? " changed" : ""}${error ? " wrong" : ""}`} data-key={field.key}>
      <label class="field-name" for={id}>
        {field.name}
        {changed && <span class="visually-hidden"> (changed)</span>}
      </label>
      <div class="field-input">
        {input}
        {field.unit && <span class="unit">{field.unit}</span>}
        {!disabled && !field.required && value !== preset && (
          <button
            type="button"
            class="link small"
            onClick={() => onChange(preset)}
            aria-label={`${field.name}: back to the default, ${preset || "none"}`}
          >
            default: {preset || "none"}
          </button>
        )}
        {changed && <span class="muted small">was {stored || "none"}</span>}
      </div>
      <p class="field-help" id={`${id}-help`}>
        {field.description} <span class="muted">{field.allowed}</span>
      </p>
      {error && <p class="field-error" id={`${id}-error`} role="alert">{error}</p>}
    </div>
  );
}
