// Dragging in the plot with a finger; uPlot itself follows a mouse only.

// A finger that moved less than this has tapped.
const LEAST_PX = 12;

/** `onPoint(x)` while a finger lies on `over`, `onSelect(from, to, isDone)` while it draws; in px from its left edge. */
export function touchZoom(over, { onPoint, onSelect }) {
  let begun = null;
  const place = (event) => Math.min(over.clientWidth, Math.max(0, event.clientX - over.getBoundingClientRect().left));
  const ends = (event) => [begun.x, place(event)].sort((a, b) => a - b);
  const isDrag = ([from, to]) => to - from >= LEAST_PX;
  over.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse" || !event.isPrimary) return;
    begun = { x: place(event), id: event.pointerId };
    over.setPointerCapture(event.pointerId);
    onPoint(begun.x);
  });
  over.addEventListener("pointermove", (event) => {
    if (event.pointerId !== begun?.id) return;
    onPoint(place(event));
    const [from, to] = ends(event);
    if (isDrag([from, to])) onSelect(from, to, false);
  });
  over.addEventListener("pointerup", (event) => {
    if (event.pointerId !== begun?.id) return;
    const [from, to] = ends(event);
    begun = null;
    onSelect(from, isDrag([from, to]) ? to : from, true);
  });
  // The browser takes the finger for scrolling up and down.
  over.addEventListener("pointercancel", (event) => {
    if (event.pointerId !== begun?.id) return;
    begun = null;
    onSelect(0, 0, true);
  });
}
