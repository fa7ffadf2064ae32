/** Candidates as circles: where the section cuts a sphere of the particle's size. */
import type { PickList } from "../data/matches";
import type { Axis } from "../data/series";
import type { Painter } from "../micrograph/viewer";
import { SIDES } from "./SlicePane";

/** One for each template that competed, told apart by every eye; then they begin again. */
const COLOURS = ["#56d4c8", "#ff9be6", "#ffd23f", "#8ab4ff", "#ff8d5c", "#b6e35a"];
const SMALLEST = 2; // CSS pixels

export const templateColour = (template: number): string => COLOURS[template % COLOURS.length]!;

interface Section {
  axis: Axis;
  /** Å from the volume's first face to the section's middle. */
  at: number;
  /** Å: how thick the section is beyond one voxel. */
  thick: number;
  /** Å from the first face to the centre of the first voxel. */
  edge: number;
}

/** Radius of each template's particle, Å. */
export function circles(
  picks: Pick<PickList, "x" | "y" | "z" | "template">,
  count: number,
  radii: readonly number[],
  marked: number,
  section: Section,
  colour: (template: number) => string = templateColour,
  line = 1.5,
): Painter {
  const [across, down] = SIDES[section.axis];
  const { at, thick, edge } = section;
  const depth = picks[section.axis];
  const here: { x: number; y: number; radius: number; template: number; marked: boolean }[] = [];
  for (let i = 0; i < count; i++) {
    const away = Math.max(0, Math.abs(depth[i]! + edge - at) - thick / 2);
    const template = picks.template[i]!;
    const square = (radii[template] ?? 0) ** 2 - away ** 2;
    if (square <= 0) continue;
    here.push({ x: picks[across][i]! + edge, y: picks[down][i]! + edge, radius: Math.sqrt(square), template, marked: i === marked });
  }
  const templates = [...new Set(here.map((one) => one.template))];
  return (context, frame) => {
    const path = (of: typeof here): Path2D => {
      const found = new Path2D();
      for (const one of of) {
        const [x, y] = frame.toScreen(one.x, one.y);
        const radius = Math.max(SMALLEST, one.radius * frame.scale);
        if (x < -radius || y < -radius || x > frame.width + radius || y > frame.height + radius) continue;
        found.moveTo(x + radius, y);
        found.arc(x, y, radius, 0, 2 * Math.PI);
      }
      return found;
    };
    const draw = (shape: Path2D, stroke: string, width: number) => {
      context.lineWidth = width + 1.5;
      context.strokeStyle = "rgb(0 0 0 / 55%)";
      context.stroke(shape);
      context.lineWidth = width;
      context.strokeStyle = stroke;
      context.stroke(shape);
    };
    for (const template of templates) draw(path(here.filter((one) => one.template === template)), colour(template), line);
    draw(path(here.filter((one) => one.marked)), "#ffffff", line + 1);
  };
}
