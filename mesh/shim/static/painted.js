// A page is whole without scripts: it is painted first. What they do before its first frame is on
// the screen keeps that frame waiting, also behind `requestAnimationFrame`: it comes before one.

export function whenPainted(go) {
  // A hidden page is not painted at all.
  if (document.hidden) return go();
  if (!PerformanceObserver.supportedEntryTypes?.includes("paint")) {
    return requestAnimationFrame(() => setTimeout(go));
  }
  new PerformanceObserver((_, observer) => {
    observer.disconnect();
    go();
  }).observe({ type: "paint", buffered: true });
}
