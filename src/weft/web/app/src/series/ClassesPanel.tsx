/** Classes of particles over a tomogram's sections: which training, which of its classes. */
import type { ClassList, Training } from "../data/classes";
import type { TomogramInfo } from "../data/series";
import { count } from "../ui/format";
import { circles } from "./pickCircles";
import { hiddenClasses, training } from "./state";
import type { Drawn } from "./TomogramView";

export const chosenTraining = (list: ClassList | null): Training | null =>
  list?.trainings.find((one) => one.name === training.value) ?? list?.trainings[0] ?? null;

/** Particles of the classes that are shown, as circles in their colours. */
export function drawnClasses(one: Training | null, info: TomogramInfo | null, hidden: readonly number[], thick: number): Drawn | undefined {
  if (!one || !info) return undefined;
  const shown = one.label.map((_, i) => i).filter((i) => !hidden.includes(one.label[i]!));
  const of = (values: readonly number[]) => shown.map((i) => values[i]!);
  const particles = { x: of(one.x), y: of(one.y), z: of(one.z), template: of(one.label) };
  const colours = new Map(one.classes.map((each) => [each.number, each.colour]));
  const most = Math.max(...colours.keys());
  const radii = new Array<number>(most + 1).fill(one.diameter / 2);
  const pixel = info.pixel_size ?? 1;
  return {
    layer: () => null,
    over: (axis, place) =>
      circles(
        particles,
        shown.length,
        radii,
        -1,
        { axis, at: (place[axis] + 0.5) * pixel, thick: (thick - 1) * pixel, edge: 0.5 * pixel },
        (number) => colours.get(number)!,
        2.5,
      ),
  };
}

export function ClassesPanel({ list }: { list: ClassList }) {
  const one = chosenTraining(list);
  const hidden = hiddenClasses.value;
  const turn = (number: number) =>
    (hiddenClasses.value = hidden.includes(number) ? hidden.filter((other) => other !== number) : [...hidden, number]);
  return (
    <section class="panel class-panel" aria-label="Classes">
      <div class="panel-head"><h2>Classes</h2></div>
      {list.problems.length > 0 && <p class="small" role="alert">{list.problems.join("; ")}</p>}
      {one && list.trainings.length > 1 && (
        <label class="search-choice">
          <span class="label">Training</span>
          <select
            value={one.name}
            onChange={(event) => {
              training.value = event.currentTarget.value;
              hiddenClasses.value = [];
            }}
          >
            {list.trainings.map((each) => <option key={each.name} value={each.name}>{each.name}</option>)}
          </select>
        </label>
      )}
      {one && list.trainings.length === 1 && <p class="small muted wrap" title={one.folder}>{one.name}</p>}
      {one?.classes.map(({ number, colour, particles }) => (
        <label class="check class-choice" key={number}>
          <input type="checkbox" checked={!hidden.includes(number)} onChange={() => turn(number)} />
          <span class="key-dot" style={{ background: colour }} />
          <span>Class {number}</span>
          <span class="muted">{count(particles)}</span>
        </label>
      ))}
    </section>
  );
}
