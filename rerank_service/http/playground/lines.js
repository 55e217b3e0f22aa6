// Lines from each passage's place before to its place after, as an SVG. Screen readers hear the moves in the rows.
import { prefersReducedMotion, svg } from "./dom.js";

/** Draws a curve per passage. `moves` has `{index, from, to, rise, isTop}`: two heights in pixels, the places gained,
 * and whether the passage is now among the first. Only rises to the top are coloured: fifty coloured lines say nothing. */
export function drawLines(picture, moves, isAnimated) {
  const { width, height } = picture.getBoundingClientRect();
  picture.setAttribute("viewBox", `0 0 ${width || 1} ${height || 1}`);
  const inset = 4;
  const [left, right] = [inset, width - inset];
  const bend = (right - left) * 0.55;
  // Lines that rise are drawn last, above the others.
  const sorted = [...moves].sort((a, b) => a.isTop - b.isTop || a.rise - b.rise);
  const paths = sorted.flatMap(({ index, from, to, rise, isTop }) => {
    const kind = rise > 0 && isTop ? "rise" : "fall";
    const d = `M${left},${from} C${left + bend},${from} ${right - bend},${to} ${right},${to}`;
    const path = svg("path", { d, class: kind, pathLength: 1, "data-index": index });
    const ends = [
      [left, from],
      [right, to],
    ];
    const dots = ends.map(([cx, cy]) => svg("circle", { cx, cy, r: 2, class: kind, "data-index": index }));
    if (isAnimated && !prefersReducedMotion()) {
      path.animate([{ strokeDasharray: "0 1" }, { strokeDasharray: "1 0" }], { duration: 620, easing: "ease-out" });
    }
    return [path, ...dots];
  });
  picture.replaceChildren(...paths);
}

/** Highlights the line of one passage; null: of none. */
export function highlightLine(picture, index) {
  picture.classList.toggle("focused", index !== null);
  for (const part of picture.children) part.classList.toggle("active", part.dataset.index === String(index));
}
