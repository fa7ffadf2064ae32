/** The tilts of a series as pictures: what was measured, which take no part and why, and the choice by hand. */
import { tiltThumbnail, type Tilt } from "../data/series";
import { readonly } from "../data/store";
import { address } from "../router";
import { DASH, number } from "../ui/format";
import { Shape } from "../ui/states";
import { hoveredTilt, tiltOrder } from "./state";
import { angstrom, degrees, micrometres, percent, withMinus } from "./words";

interface Props {
  id: string;
  tilts: readonly Tilt[];
  revision: string;
  onDecide: (tilts: number[], keep: boolean | null) => void;
}

/** Whether it will take part when everything is up to date. */
const takesPart = (tilt: Tilt): boolean => tilt.decision ?? (tilt.pending || tilt.used || tilt.reason === "");

function verdict(tilt: Tilt): string {
  if (tilt.pending) {
    if (tilt.decision === null) return "left to Weft again, not done yet";
    return tilt.decision ? "kept by hand, not done yet" : "left out by hand, not done yet";
  }
  if (!tilt.used) return withMinus(tilt.reason) || "to come";
  if (tilt.decision) return "kept by hand";
  return withMinus(tilt.doubt);
}

function numbers(tilt: Tilt): [string, string][] {
  return [
    ["dose", tilt.dose === null ? DASH : `${number(tilt.dose)} e/Å²`],
    ["motion", angstrom(tilt.motion, 2)],
    ["defocus", micrometres(tilt.defocus)],
    ["CTF to", tilt.fitted === false ? "no rings" : angstrom(tilt.resolution)],
    ["residual", tilt.aligned === false ? "not seen" : angstrom(tilt.residual, 2)],
    ["counts", percent(tilt.relative_counts)],
  ];
}

function Numbers({ tilt, known }: { tilt: Tilt; known: ReadonlySet<string> }) {
  return (
    <dl class="tilt-numbers">
      {numbers(tilt).map(([name, value]) => known.has(name) && (
        <div key={name}><dt>{name}</dt><dd>{value}</dd></div>
      ))}
    </dl>
  );
}

interface CardProps extends Omit<Props, "tilts"> {
  tilt: Tilt;
  /** What was measured on any tilt of the series. */
  known: ReadonlySet<string>;
}

function Card({ id, tilt, revision, known, onDecide }: CardProps) {
  const part = takesPart(tilt);
  const said = verdict(tilt);
  const usable = tilt.pictured;
  const decide = (keep: boolean | null) => onDecide([tilt.index], keep);
  const key = (event: KeyboardEvent) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const card = event.currentTarget as HTMLElement;
    const moves: Record<string, Element | null> = {
      ArrowLeft: card.previousElementSibling,
      ArrowRight: card.nextElementSibling,
    };
    if (event.key in moves) (moves[event.key] as HTMLElement | null)?.focus();
    else if (readonly.value || !usable) return;
    else if (event.key === "e") decide(false);
    else if (event.key === "i") decide(true);
    else if (event.key === "u") decide(null);
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  return (
    <li
      class={`tilt-card${part ? "" : " out"}${tilt.pending ? " pending" : ""}${hoveredTilt.value === tilt.index ? " marked" : ""}`}
      data-tilt={tilt.index}
      tabIndex={0}
      aria-label={`${degrees(tilt.angle)}, ${part ? "takes part" : "left out"}${said ? `, ${said}` : ""}`}
      onPointerEnter={(event) => event.pointerType === "mouse" && (hoveredTilt.value = tilt.index)}
      onPointerLeave={() => (hoveredTilt.value = -1)}
      onKeyDown={key}
    >
      <a
        class={`tilt-picture${tilt.pictured ? "" : " blank"}`}
        href={address.series(id, { show: "alignment", tilt: String(tilt.index) })}
        tabIndex={-1}
        aria-label={`Look at ${degrees(tilt.angle)}`}
      >
        {tilt.pictured && (
          <img
            src={tiltThumbnail(id, tilt.index, revision)}
            alt=""
            loading="lazy"
            decoding="async"
            draggable={false}
            onError={(event) => (event.currentTarget.hidden = true)}
          />
        )}
      </a>
      <div class="tilt-head">
        <strong>{degrees(tilt.angle)}</strong>
        <span class="muted" title="Place in the order of acquisition">{`no. ${tilt.index + 1}`}</span>
      </div>
      <Numbers tilt={tilt} known={known} />
      {said && (
        <p class={`tilt-said ${tilt.pending ? "state-processing" : !part ? "verdict-out" : tilt.used ? "state-stale" : "muted"}`} title={said}>
          {!part && <Shape of="exclude" />} {said}
        </p>
      )}
      {!readonly.value && usable && (
        <div class="tilt-buttons">
          <button type="button" class="button small" onClick={() => decide(!part)}>{part ? "Leave out" : "Keep"}</button>
          {tilt.decision !== null && (
            <button type="button" class="button small" title="Leave it to Weft again" onClick={() => decide(null)}>Reset</button>
          )}
        </div>
      )}
    </li>
  );
}

export function OrderSwitch() {
  return (
    <fieldset class="segmented">
      <legend class="visually-hidden">Order of the tilts</legend>
      {(["angle", "acquisition"] as const).map((order) => (
        <label key={order}>
          <input type="radio" name="tilt-order" checked={tiltOrder.value === order} onChange={() => (tiltOrder.value = order)} />
          <span>{order === "angle" ? "by angle" : "as acquired"}</span>
        </label>
      ))}
    </fieldset>
  );
}

export function TiltStrip({ id, tilts, revision, onDecide }: Props) {
  const along = tiltOrder.value;
  const ordered = [...tilts].sort((a, b) => (along === "angle" ? a.angle - b.angle : 0) || a.index - b.index);
  const known = new Set(tilts.flatMap(numbers).filter(([, value]) => value !== DASH).map(([name]) => name));
  return (
    <ul class="tilt-strip" aria-label="Tilts">
      {ordered.map((tilt) => <Card key={tilt.index} id={id} tilt={tilt} revision={revision} known={known} onDecide={onDecide} />)}
    </ul>
  );
}
