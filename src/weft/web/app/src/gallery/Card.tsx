/** One micrograph of the gallery. */
import { memo } from "preact/compat";
import { picture } from "../data/api";
import type { Decision, State } from "../data/types";
import { quantity } from "../ui/format";
import { Shape, STATE_WORDS } from "../ui/states";

export interface CardProps {
  id: string;
  place: number;
  count: number;
  state: State;
  selected: boolean;
  manual: Decision;
  reason: string;
  revision: string;
  /** Whether its picture is to be fetched: it has one, and scrolling has slowed down over it. */
  pictured: boolean;
  numbers: string;
  focused: boolean;
  marked: boolean;
  highlighted: boolean;
  left: number;
  top: number;
  width: number;
  height: number;
}

const TAIL = 12;

export const Card = memo(function Card(props: CardProps) {
  const { id, state, selected, manual } = props;
  const verdict = manual ? `${manual}d by hand` : state !== "done" ? "" : selected ? "selected" : "not selected";
  const shape = manual ?? (selected ? "done" : "rejected");
  return (
    <div
      id={`card-${props.place}`}
      role="option"
      aria-selected={props.marked}
      aria-posinset={props.place + 1}
      aria-setsize={props.count}
      aria-label={[id, STATE_WORDS[state], verdict, props.reason, props.numbers].filter(Boolean).join(", ")}
      data-id={id}
      data-place={props.place}
      class={[
        "card",
        `is-${state}`,
        selected ? "in" : "out",
        props.focused ? "focused" : "",
        props.marked ? "marked" : "",
        props.highlighted ? "highlighted" : "",
      ].join(" ")}
      style={{
        transform: `translate(${props.left}px, ${props.top}px)`,
        width: `${props.width}px`,
        height: `${props.height}px`,
      }}
    >
      <div class={`card-picture${props.pictured ? "" : " blank"}`}>
        {props.pictured && (
          <img
            key={`${id} ${props.revision}`}
            src={picture(id, "thumbnail", props.revision)}
            alt=""
            decoding="async"
            draggable={false}
            onError={(event) => (event.currentTarget.hidden = true)}
          />
        )}
      </div>
      <div class="card-badges">
        {state !== "done" && (
          <span class={`badge state-${state}`}>
            <Shape of={state} />
            {STATE_WORDS[state]}
          </span>
        )}
        {(state === "done" || manual) && (
          <span class={`badge ${selected ? "verdict-in" : "verdict-out"}`} title={verdict}>
            <Shape of={shape} />
            {manual ? `${manual}d` : ""}
          </span>
        )}
      </div>
      <div class="card-name" title={id}>
        {/* names differ at their end */}
        <span class="name-head">{id.slice(0, -TAIL)}</span>
        <span class="name-tail">{id.slice(-TAIL)}</span>
      </div>
      <div class={`card-line ${props.reason ? (state === "done" ? "verdict-out" : `state-${state}`) : ""}`} title={props.reason || props.numbers}>
        {/* folders are the same for all, and would take the line */}
        {props.reason.replaceAll(/\/\S*\//g, "") || props.numbers}
      </div>
    </div>
  );
});

/** The two numbers that people look at first. */
export function cardNumbers(defocus: number | undefined, resolution: number | undefined): string {
  const parts: string[] = [];
  if (defocus !== undefined && !Number.isNaN(defocus)) parts.push(quantity(defocus, "µm"));
  if (resolution !== undefined && !Number.isNaN(resolution)) parts.push(quantity(resolution, "Å"));
  return parts.join(" · ");
}
