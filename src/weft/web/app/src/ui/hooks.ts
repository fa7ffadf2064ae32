import { useEffect, useState } from "preact/hooks";
import { ApiError } from "../data/api";

export interface Fetched<T> {
  data: T | null;
  error: string;
  loading: boolean;
}

/**
 * Fetch again when a dependency changes. What is there stays until the new has come, unless it is about
 * something else: the first dependency says about what. Null asks for nothing.
 */
export function useFetched<T>(
  load: ((signal: AbortSignal) => Promise<T>) | null,
  dependencies: readonly [subject: string, ...others: unknown[]],
): Fetched<T> {
  const [subject] = dependencies;
  const nothing: Fetched<T> & { subject: string } = { subject, data: null, error: "", loading: load !== null };
  const [state, setState] = useState(nothing);
  useEffect(() => {
    if (!load) {
      setState({ ...nothing, loading: false });
      return;
    }
    const controller = new AbortController();
    setState((before) => (before.subject === subject ? { ...before, loading: true } : nothing));
    load(controller.signal).then(
      (data) => !controller.signal.aborted && setState({ subject, data, error: "", loading: false }),
      (error: unknown) => {
        if (controller.signal.aborted) return;
        // what does not exist is no fault of anybody's
        const text = error instanceof ApiError && error.status === 404 ? "" : String((error as Error).message);
        setState({ subject, data: null, error: text, loading: false });
      },
    );
    return () => controller.abort();
  }, dependencies);
  return state.subject === subject ? state : nothing;
}

/** The value as it was when it has stood still for `delay` ms. */
export function useSettled<T>(value: T, delay: number): T {
  const [settled, setSettled] = useState(value);
  const key = JSON.stringify(value);
  useEffect(() => {
    const timer = window.setTimeout(() => setSettled(value), delay);
    return () => window.clearTimeout(timer);
  }, [key, delay]);
  return settled;
}

/** Keys for the whole view; never while somebody types. */
export function useKeys(keys: Record<string, () => void>): void {
  useEffect(() => {
    const pressed = (event: KeyboardEvent) => {
      const target = event.target as HTMLElement;
      const types = target instanceof HTMLInputElement && target.type !== "range" && target.type !== "checkbox";
      if (types || target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement) return;
      if (event.altKey || event.metaKey) return;
      const action = keys[(event.ctrlKey ? "Ctrl+" : "") + event.key];
      if (!action) return;
      event.preventDefault();
      action();
    };
    document.addEventListener("keydown", pressed);
    return () => document.removeEventListener("keydown", pressed);
  });
}
