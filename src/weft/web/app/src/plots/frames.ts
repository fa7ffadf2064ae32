/** Drawing in small portions: a dozen plots of 10,000 points must not make one long frame. */

const BUDGET = 7; // ms of a 16 ms frame

type Task = () => void;
const queue = new Map<object, Task>();
let requested = 0;

function run(): void {
  requested = 0;
  const end = performance.now() + BUDGET;
  for (const [owner, task] of queue) {
    queue.delete(owner);
    task();
    if (performance.now() > end) break;
  }
  if (queue.size > 0) requested = requestAnimationFrame(run);
}

/** Run `task` in one of the next frames; a later task of the same owner takes its place. */
export function schedule(owner: object, task: Task): void {
  queue.set(owner, task);
  requested ||= requestAnimationFrame(run);
}

export function cancel(owner: object): void {
  queue.delete(owner);
}
