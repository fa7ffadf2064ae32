/** A tomogram as three sections through one place. */
import type { ComponentChildren } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { classesOf } from "../data/classes";
import { seriesApi, type Axis, type MapName, type SeriesDetails, type TomogramInfo } from "../data/series";
import { Slider } from "../micrograph/ViewTools";
import type { Painter } from "../micrograph/viewer";
import { number } from "../ui/format";
import { useFetched, useKeys } from "../ui/hooks";
import { chosenTraining, ClassesPanel, drawnClasses } from "./ClassesPanel";
import { PLANES, SIDES, SlicePane, voxels, type Layer, type Place } from "./SlicePane";
import { hiddenClasses, map as chosenMap, pane, thickness } from "./state";

const GAP = 4;
const NARROW = 640;
const SIZES = [256, 512, 1024, 2048, 4096];
const AXES: readonly Axis[] = ["z", "y", "x"];
const MAP_WORDS: Record<MapName, string> = { raw: "as reconstructed", deconvolved: "deconvolved", denoised: "denoised" };

/** How large the panes are, in CSS pixels; one of them where there is no room for three. */
function layout(counts: Place, width: number, height: number, single: Axis | null) {
  if (single) {
    const [across, down] = SIDES[single];
    const scale = Math.min(width / counts[across], height / counts[down]);
    return { scale, panes: [{ axis: single, width, height: Math.min(height, Math.max(160, counts[down] * scale)) }] };
  }
  const scale = Math.min((width - GAP) / (counts.x + counts.z), (height - GAP) / (counts.y + counts.z));
  const px = (n: number) => Math.max(24, Math.floor(n * scale));
  return {
    scale,
    panes: [
      { axis: "z" as const, width: px(counts.x), height: px(counts.y) },
      { axis: "x" as const, width: px(counts.z), height: px(counts.y) },
      { axis: "y" as const, width: px(counts.x), height: px(counts.z) },
    ],
  };
}

/** What is drawn over the sections. */
export interface Drawn {
  layer: (axis: Axis, place: Place, size: number) => Layer | null;
  over: (axis: Axis, place: Place) => Painter | null;
}

interface SectionsProps {
  one: SeriesDetails;
  info: TomogramInfo;
  drawn?: Drawn;
  /** Where to go, each time that it is another object. */
  target?: Place | null;
  /** Above the tools of the sections. */
  children?: ComponentChildren;
}

export function Sections({ one, info, drawn, target, children }: SectionsProps) {
  const counts = voxels(info);
  const middle = (): Place => ({ x: counts.x >> 1, y: counts.y >> 1, z: counts.z >> 1 });
  const [place, setPlace] = useState(middle);
  const [contrast, setContrast] = useState<[number, number]>([info.black, info.white]);
  const [room, setRoom] = useState({ width: 0, height: 0 });
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => setContrast([info.black, info.white]), [info]);
  useEffect(() => {
    if (target) move(target);
  }, [target]);
  useEffect(() => {
    const element = box.current!;
    // all three are seen without scrolling, where that leaves them large enough
    const look = () => {
      const above = element.getBoundingClientRect().top + (element.closest("main")?.scrollTop ?? 0);
      setRoom({ width: element.clientWidth, height: Math.max(360, window.innerHeight - above - 16) });
    };
    const sized = new ResizeObserver(look);
    sized.observe(element);
    window.addEventListener("resize", look);
    look();
    return () => {
      sized.disconnect();
      window.removeEventListener("resize", look);
    };
  }, []);
  const move = (part: Partial<Place>) =>
    setPlace((last) => {
      const next = { ...last, ...part };
      for (const axis of AXES) next[axis] = Math.max(0, Math.min(counts[axis] - 1, next[axis]));
      return next;
    });
  const step = (axis: Axis, by: number) => setPlace((last) => ({ ...last, [axis]: Math.max(0, Math.min(counts[axis] - 1, last[axis] + by)) }));
  useKeys({
    PageUp: () => step("z", 1),
    PageDown: () => step("z", -1),
    ".": () => step("z", 1),
    ",": () => step("z", -1),
    c: () => setPlace(middle()),
  });
  const narrow = room.width > 0 && room.width < NARROW;
  const { panes, scale } = layout(counts, room.width, narrow ? Math.min(room.height, 520) : room.height, narrow ? pane.value : null);
  const needed = Math.max(...info.shape) * scale * (window.devicePixelRatio || 1);
  const size = SIZES.find((one) => one >= needed * 0.8) ?? SIZES.at(-1)!;
  const pixel = info.pixel_size ?? 0;
  const overs = useMemo(
    () => new Map(AXES.map((axis) => [axis, drawn?.over(axis, place) ?? null])),
    [drawn, place, thickness.value],
  );
  return (
    <div class="tomogram-layout">
      <div class={`slice-panes${narrow ? " single" : ""}`} ref={box}>
        {room.width > 0 && panes.map((each, index) => (
          <SlicePane
            key={each.axis}
            id={one.id}
            revision={one.revision}
            info={info}
            map={info.map}
            axis={each.axis}
            place={place}
            thickness={thickness.value}
            size={size}
            contrast={contrast}
            bar={index === 0}
            width={each.width}
            height={each.height}
            layer={drawn?.layer(each.axis, place, size) ?? null}
            over={overs.get(each.axis) ?? null}
            onPlace={move}
          />
        ))}
      </div>
      <div class="slice-side">
        {children}
        <section class="panel slice-tools" aria-label="Sections">
          {narrow && (
            <fieldset class="segmented">
              <legend class="visually-hidden">Which section</legend>
              {AXES.map((axis) => (
                <label key={axis}>
                  <input type="radio" name="pane" checked={pane.value === axis} onChange={() => (pane.value = axis)} />
                  <span>{PLANES[axis]}</span>
                </label>
              ))}
            </fieldset>
          )}
          {(["x", "y", "z"] as const).map((axis) => (
            <label class="slider place-slider" key={axis}>
              <span class="label">{axis}</span>
              <input
                type="range"
                min={0}
                max={counts[axis] - 1}
                step={1}
                value={place[axis]}
                aria-label={`Section along ${axis}`}
                onInput={(event) => move({ [axis]: event.currentTarget.valueAsNumber })}
              />
              <output>{place[axis] + 1}<span class="muted"> / {counts[axis]}</span></output>
            </label>
          ))}
          <label class="slider place-slider">
            <span class="label">Average</span>
            <input
              type="range"
              min={1}
              max={Math.min(32, counts.z)}
              step={1}
              value={thickness.value}
              aria-label="Sections that are averaged"
              onInput={(event) => (thickness.value = event.currentTarget.valueAsNumber)}
            />
            <output>{pixel > 0 ? `${number((thickness.value * pixel) / 10)} nm` : thickness.value}</output>
          </label>
          <div class="contrast-tools" role="group" aria-label="Contrast">
            <span class="group-name">Contrast</span>
            <Slider label="Black" min={0} max={254} step={1} value={contrast[0]} onInput={(value) => setContrast([value, Math.max(value + 1, contrast[1])])} />
            <Slider label="White" min={1} max={255} step={1} value={contrast[1]} onInput={(value) => setContrast([Math.min(contrast[0], value - 1), value])} />
            <button
              type="button"
              class="button small"
              disabled={contrast[0] === info.black && contrast[1] === info.white}
              onClick={() => setContrast([info.black, info.white])}
            >
              Reset
            </button>
          </div>
          <table class="file-table">
            <tbody>
              <tr><th scope="row">Voxels</th><td>{`${counts.x} × ${counts.y} × ${counts.z}`}</td></tr>
              {pixel > 0 && <tr><th scope="row">Voxel size</th><td>{number(pixel)} Å</td></tr>}
              {pixel > 0 && (
                <tr>
                  <th scope="row">Place</th>
                  <td>{(["x", "y", "z"] as const).map((axis) => number((place[axis] * pixel) / 10, 4)).join(", ")} nm</td>
                </tr>
              )}
            </tbody>
          </table>
          <p class="slice-help muted small">
            Click a section to go there; the wheel magnifies. <kbd>,</kbd> <kbd>.</kbd> next section in z, <kbd>c</kbd> the middle, <kbd>d</kbd> deconvolved.
          </p>
        </section>
      </div>
    </div>
  );
}

/** The map that is shown: the one that was chosen where the series has it, else the one that is seen best. */
export function mapOf(one: SeriesDetails): MapName {
  const maps = one.tomogram?.maps ?? [];
  if (chosenMap.value && maps.includes(chosenMap.value)) return chosenMap.value;
  return maps.find((name) => name === "denoised") ?? maps.find((name) => name === "deconvolved") ?? "raw";
}

export function MapSwitch({ one }: { one: SeriesDetails }) {
  const maps = one.tomogram?.maps ?? [];
  const map = mapOf(one);
  if (maps.length < 2) return null;
  return (
    <fieldset class="segmented">
      <legend class="visually-hidden">Which map</legend>
      {maps.map((name) => (
        <label key={name}>
          <input type="radio" name="map" checked={map === name} onChange={() => (chosenMap.value = name)} />
          <span>{MAP_WORDS[name]}</span>
        </label>
      ))}
    </fieldset>
  );
}

export function TomogramView({ one }: { one: SeriesDetails }) {
  const maps = one.tomogram?.maps ?? [];
  const map = mapOf(one);
  const { id, revision } = one;
  const found = useFetched(maps.length > 0 ? (signal) => seriesApi.tomogram(id, map, signal) : null, [id, revision, map]);
  const classes = useFetched(maps.length > 0 ? (signal) => classesOf(id, signal) : null, [id, revision]).data;
  useKeys({ d: () => maps.includes("deconvolved") && (chosenMap.value = map === "deconvolved" ? "raw" : "deconvolved") });
  const [info, chosen, hidden, thick] = [found.data, chosenTraining(classes), hiddenClasses.value, thickness.value];
  const drawn = useMemo(() => drawnClasses(chosen, info, hidden, thick), [chosen, info, hidden, thick]);
  if (maps.length === 0) return <p class="empty">There is no tomogram yet.</p>;
  return (
    <>
      {found.error && <div class="notice notice-error" role="alert"><p>{found.error}</p></div>}
      {/* while the grey scale of another map is fetched, the sections stay as they are */}
      {info && (
        <Sections one={one} info={info} drawn={drawn}>
          {classes && (classes.trainings.length > 0 || classes.problems.length > 0) && <ClassesPanel list={classes} />}
        </Sections>
      )}
    </>
  );
}
