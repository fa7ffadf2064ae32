/** Astigmatism as a cloud of vectors: one that moves away is the microscope, one that spreads is the fit. */
import { effect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { columns } from "../data/columns";
import { brushed, hovered } from "../data/highlight";
import { cancel, schedule } from "../plots/frames";
import { astigmatismVectors, ScatterPlot } from "../plots/scatter";
import { palette } from "../ui/theme";

export function AstigmatismPanel() {
  const host = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const element = host.current!;
    const plot = new ScatterPlot(element);
    const marks = {};
    const draw = () => {
      const vectors = astigmatismVectors();
      if (vectors) plot.draw(vectors, palette.peek());
    };
    const sized = new ResizeObserver(() => schedule(plot, draw));
    sized.observe(element);
    const stops = [
      effect(() => {
        void [columns.version.value, palette.value];
        schedule(plot, draw);
      }),
      effect(() => {
        void [hovered.value, brushed.value];
        schedule(marks, () => plot.drawMarks(palette.peek()));
      }),
    ];
    return () => {
      for (const stop of stops) stop();
      sized.disconnect();
      cancel(plot);
      cancel(marks);
      plot.destroy();
    };
  }, []);
  return (
    <section class="panel astigmatism" aria-label="Astigmatism as a vector">
      <header class="panel-head">
        <h2>
          Astigmatism <span class="unit">length, and direction doubled</span>
        </h2>
      </header>
      <div
        class="scatter"
        ref={host}
        tabIndex={0}
        role="group"
        aria-label="Astigmatism of each micrograph as a vector. Left and right arrows go through them, Enter opens one."
      />
    </section>
  );
}
