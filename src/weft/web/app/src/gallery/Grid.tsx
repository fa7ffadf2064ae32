/** A grid of any length of which only the visible rows exist. */
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { columns } from "../data/columns";
import { brushed, brushedMask } from "../data/highlight";
import { decide, retry } from "../data/store";
import type { Decision } from "../data/types";
import { address, go } from "../router";
import { Card, cardNumbers } from "./Card";
import { reasons } from "./list";

const GAP = 8;
const TEXT = 44;
const OVERSCAN = 1;
/** Pixels in a ms above which pictures are not fetched: they would be gone before they came. */
const FAST = 3;
const REST = 120;

/** Where each list was left, so that coming back from one micrograph finds it again. */
const memory = { key: "", scroll: 0, focus: "" };

interface Props {
  items: number[];
  size: number;
  listKey: string;
}

const KEYS: Record<string, Decision> = { i: "include", e: "exclude", u: null };

export function Grid({ items, size, listKey }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const [view, setView] = useState({ top: 0, width: 0, height: 0 });
  const [focusId, setFocusId] = useState(memory.key === listKey ? memory.focus : "");
  const [anchorId, setAnchorId] = useState("");
  void [columns.version.value, brushed.value];

  const across = Math.max(1, Math.floor((view.width + GAP) / (size + GAP)));
  const width = Math.floor((view.width - GAP * (across - 1)) / across);
  const rowHeight = width + TEXT + GAP;
  const rows = Math.ceil(items.length / across);
  const place = (id: string) => items.indexOf(columns.at.get(id) ?? -1);
  // a card that has left the list hands the focus to the one that took its place
  const lastFocus = useRef(0);
  const found = focusId ? place(focusId) : 0;
  const focus = found >= 0 ? found : Math.min(lastFocus.current, Math.max(0, items.length - 1));
  lastFocus.current = focus;
  const anchor = anchorId ? place(anchorId) : -1;
  const [from, to] = anchor < 0 ? [focus, focus] : [Math.min(anchor, focus), Math.max(anchor, focus)];

  useLayoutEffect(() => {
    const element = box.current!;
    const look = () =>
      setView({ top: element.scrollTop, width: element.clientWidth - 2 * GAP, height: element.clientHeight });
    const sized = new ResizeObserver(look);
    sized.observe(element);
    look();
    return () => sized.disconnect();
  }, []);

  useEffect(() => {
    if (view.width <= 0) return;
    // a list that is opened again stands where it was left, another one at its top
    box.current!.scrollTop = memory.key === listKey ? memory.scroll : 0;
    if (memory.key !== listKey) {
      setFocusId("");
      setAnchorId("");
    }
    memory.key = listKey;
  }, [listKey, view.width > 0]);

  const pace = useRef({ top: 0, at: 0, timer: 0 });
  const [fast, setFast] = useState(false);
  const pictured = useRef(new Set<number>());
  const scrolled = () => {
    const top = box.current!.scrollTop;
    memory.scroll = top;
    const now = performance.now();
    const { at, top: before } = pace.current;
    window.clearTimeout(pace.current.timer);
    pace.current = { top, at: now, timer: window.setTimeout(() => setFast(false), REST) };
    setFast(Math.abs(top - before) > FAST * Math.max(8, now - at));
    setView((last) => (last.top === top ? last : { ...last, top }));
  };
  useEffect(() => () => window.clearTimeout(pace.current.timer), []);

  function moveTo(next: number, extend: boolean): void {
    const bounded = Math.max(0, Math.min(items.length - 1, next));
    const id = columns.ids[items[bounded] ?? -1];
    if (id === undefined) return;
    if (!extend) setAnchorId("");
    else if (!anchorId) setAnchorId(columns.ids[items[focus]!] ?? "");
    memory.focus = id;
    setFocusId(id);
    const element = box.current!;
    const top = Math.floor(bounded / across) * rowHeight;
    if (top < element.scrollTop) element.scrollTop = top;
    else if (top + rowHeight > element.scrollTop + element.clientHeight) {
      element.scrollTop = top + rowHeight + GAP - element.clientHeight;
    }
  }

  function key(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey || items.length === 0) return;
    const page = Math.max(1, Math.floor(view.height / rowHeight)) * across;
    const moves: Record<string, number> = {
      ArrowLeft: focus - 1,
      ArrowRight: focus + 1,
      ArrowUp: focus - across,
      ArrowDown: focus + across,
      PageUp: focus - page,
      PageDown: focus + page,
      Home: 0,
      End: items.length - 1,
    };
    const chosen = items.slice(from, to + 1).map((index) => columns.ids[index]!);
    const low = event.key.toLowerCase();
    if (event.key in moves) moveTo(moves[event.key]!, event.shiftKey);
    else if (event.key === "Enter") go(address.micrograph(columns.ids[items[focus]!]!));
    else if (event.key === "Escape") setAnchorId("");
    else if (low === "r") {
      const failed = chosen.filter((id) => columns.state[columns.at.get(id)!] === "failed");
      void retry(failed);
    } else if (low in KEYS) void decide(chosen, KEYS[low]!);
    else return;
    event.preventDefault();
  }

  function click(event: MouseEvent): void {
    const card = (event.target as Element).closest<HTMLElement>("[data-place]");
    if (!card) return;
    const at = Number(card.dataset["place"]);
    if (event.shiftKey) moveTo(at, true);
    else if (event.ctrlKey || event.metaKey) moveTo(at, false);
    else {
      memory.focus = card.dataset["id"]!;
      go(address.micrograph(card.dataset["id"]!));
    }
  }

  const first = Math.max(0, Math.floor(view.top / rowHeight) - OVERSCAN) * across;
  const last = Math.min(items.length, (Math.ceil((view.top + view.height) / rowHeight) + OVERSCAN) * across);
  // cards that scroll out of sight are used again for those that come into it
  const pool = (Math.ceil(view.height / rowHeight) + 2 * OVERSCAN + 1) * across;
  const visible = items.slice(first, last);
  // pictures that are there stay, others are added unless one flies over them
  pictured.current = new Set(visible.filter((index) => pictured.current.has(index) || (!fast && columns.measured(index))));
  const mask = brushedMask.value;
  const [defocus, resolution] = [columns.column("defocus")?.values, columns.column("resolution")?.values];
  return (
    <div
      ref={box}
      class="grid"
      role="listbox"
      aria-multiselectable="true"
      aria-label="Micrographs. Arrows move, Enter opens, i includes, e excludes, u leaves it to the ranges."
      aria-activedescendant={items.length > 0 ? `card-${focus}` : undefined}
      tabIndex={0}
      onScroll={scrolled}
      onKeyDown={key}
      onClick={click}
    >
      <div class="grid-inner" style={{ height: `${rows * rowHeight}px` }}>
        {view.width > 0 &&
          visible.map((index, offset) => {
            const at = first + offset;
            const id = columns.ids[index]!;
            const why = columns.state[index] === "done" ? reasons(index).join(", ") : columns.reason[index]!;
            return (
              <Card
                key={at % pool}
                id={id}
                place={at}
                count={items.length}
                state={columns.state[index]!}
                selected={columns.selected[index]!}
                manual={columns.manual[index]!}
                reason={why}
                pictured={pictured.current.has(index)}
                revision={columns.revision[index]!}
                numbers={cardNumbers(defocus?.[index], resolution?.[index])}
                focused={at === focus}
                marked={anchor >= 0 && at >= from && at <= to}
                highlighted={mask[index] === 1}
                left={(at % across) * (width + GAP)}
                top={Math.floor(at / across) * rowHeight}
                width={width}
                height={rowHeight - GAP}
              />
            );
          })}
      </div>
    </div>
  );
}
