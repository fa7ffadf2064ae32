/** One small plot with its title; the value under the pointer stands beside it. */
import { useEffect, useRef } from "preact/hooks";
import type { ComponentChildren } from "preact";
import { DotPlot, type Dots } from "../plots/dots";
import { palette } from "../ui/theme";

interface Props {
  title: string;
  unit?: string;
  dots: Dots;
  /** What of it is marked, or −1. */
  marked: number;
  /** The marked value in words. */
  words: string;
  xWords: (value: number) => string;
  onHover: (index: number) => void;
  onPick: (index: number) => void;
  class?: string;
  children?: ComponentChildren;
}

export function DotPanel({ title, unit, dots, marked, words, xWords, onHover, onPick, class: extra, children }: Props) {
  const host = useRef<HTMLDivElement>(null);
  const plot = useRef<DotPlot | null>(null);
  const latest = useRef({ dots, marked, onHover, onPick, xWords });
  latest.current = { dots, marked, onHover, onPick, xWords };
  const colours = palette.value;
  const key = JSON.stringify(dots);
  useEffect(() => {
    const element = host.current!;
    const made = new DotPlot(
      element,
      (value) => latest.current.xWords(value),
      (index) => latest.current.onHover(index),
      (index) => latest.current.onPick(index),
    );
    plot.current = made;
    const sized = new ResizeObserver(() => made.draw(latest.current.dots, palette.peek(), latest.current.marked));
    sized.observe(element);
    return () => {
      sized.disconnect();
      made.destroy();
    };
  }, []);
  useEffect(() => plot.current?.draw(latest.current.dots, colours, marked), [key, marked, colours]);
  return (
    <section class={`panel dot-panel ${extra ?? ""}`} aria-label={title}>
      <header class="panel-head">
        <h2>{title}{unit && <span class="unit">{unit}</span>}</h2>
        <span class="muted small dot-words">{words}</span>
      </header>
      <div class="dot-plot" ref={host} role="img" aria-label={`${title}${unit ? ` in ${unit}` : ""}`} />
      {children}
    </section>
  );
}
