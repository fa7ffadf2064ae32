/** The views of the page. A new one is a component and an entry here. */
import type { ComponentType } from "preact";
import { Micrographs } from "./gallery/Micrographs";
import { Micrograph } from "./micrograph/Micrograph";
import { Overview } from "./overview/Overview";
import { ofTilts } from "./data/store";
import { address } from "./router";
import { TiltSeries } from "./series/TiltSeries";
import { Settings } from "./settings/Settings";

export interface View {
  /** First part of the address. */
  name: string;
  component: ComponentType;
  /** What the navigation calls it; a view without a label is reached from another one. */
  label?: () => string;
  address?: string;
  /** The entry of the navigation that it belongs to. */
  under?: string;
}

export const VIEWS: readonly View[] = [
  { name: "series", component: TiltSeries, label: () => (ofTilts.value ? "Tilt series" : ""), address: address.series() },
  { name: "overview", component: Overview, label: () => "Overview", address: address.overview },
  { name: "micrographs", component: Micrographs, label: () => (ofTilts.value ? "Tilts" : "Micrographs"), address: address.micrographs() },
  { name: "micrograph", component: Micrograph, under: "micrographs" },
  { name: "settings", component: Settings, label: () => "Settings", address: address.settings },
];
