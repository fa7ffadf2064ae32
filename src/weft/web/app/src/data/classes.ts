/** Classes that trainings have found, as `weft vae map-back` has put them into the session. */
import { get } from "./api";

export interface ParticleClass {
  number: number;
  colour: string;
  particles: number;
}

export interface Training {
  name: string;
  folder: string;
  time: number;
  diameter: number;
  classes: ParticleClass[];
  x: number[];
  y: number[];
  z: number[];
  label: number[];
}

export interface ClassList {
  trainings: Training[];
  problems: string[];
}

export const classesOf = (id: string, signal?: AbortSignal): Promise<ClassList> =>
  get<ClassList>(`api/series/${encodeURIComponent(id)}/classes`, signal);
