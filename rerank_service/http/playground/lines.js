// Lines from each passage's place before to its place after, as an SVG. Screen readers hear the moves in the rows.
import { prefersReducedMotion, svg } from "./dom.js";

const DRAWING = { duration: 620, easing: "ease-out" };
const INSET = 4;

/** Draws a curve per passage. `moves` has `{index, from, to, rise, isTop}`: two heights in pixels, the places gained,
 * and whether the passage is now among the first. Only rises to the top are coloured: fifty coloured lines say nothing. */
export function drawLines(picture, moves) {
  // Lines that rise to the top are drawn last, above the others.
  const sorted = [...moves].sort((a, b) => a.isTop - b.isTop || a.rise - b.rise);
  const lines = sorted.map(({ index, rise, isTop }) => {
    const kind = { class: rise > 0 && isTop ? "rise" : "fall", "data-index": index };
    const line = svg("g", kind);
    line.append(svg("path", { pathLength: 1 }), svg("circle", { r: 2 }), svg("circle", { r: 2 }));
    return line;
  });
  picture.replaceChildren(...lines);
  fitLines(picture, moves);
  if (prefersReducedMotion()) return;
  for (const path of picture.querySelectorAll("path")) {
    path.animate([{ strokeDasharray: "0 1" }, { strokeDasharray: "1 0" }], DRAWING);
  }
}

/** Fits the lines that are drawn to new heights. */
export function fitLines(picture, moves) {
  const { width, height } = picture.getBoundingClientRect();
  picture.setAttribute("viewBox", `0 0 ${width || 1} ${height || 1}`);
  const [left, right] = [INSET, width - INSET];
  const bend = (right - left) * 0.55;
  const byIndex = new Map(moves.map((move) => [String(move.index), move]));
  for (const line of picture.children) {
    const { from, to } = byIndex.get(line.dataset.index);
    const [path, start, end] = line.children;
    path.setAttribute("d", `M${left},${from} C${left + bend},${from} ${right - bend},${to} ${right},${to}`);
    place(start, left, from);
    place(end, right, to);
  }
}

function place(circle, x, y) {
  circle.setAttribute("cx", x);
  circle.setAttribute("cy", y);
}

/** Highlights the line of one passage; null: of none. */
export function highlightLine(picture, index) {
  picture.classList.toggle("focused", index !== null);
  for (const line of picture.children) line.classList.toggle("active", line.dataset.index === index);
}
