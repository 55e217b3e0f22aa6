// Helpers that build the page and format its numbers. Strings become text nodes, never markup.

export const $ = (id) => document.getElementById(id);

/** Returns a new element. Children are nodes or strings. */
export function element(tag, className = "", ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** Returns a new button that does nothing but `onClick`. */
export function button(className, words, onClick) {
  const made = element("button", className, words);
  made.type = "button";
  made.addEventListener("click", onClick);
  return made;
}

export function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** The value of the checked radio button. */
export const choice = (name) => document.querySelector(`input[name="${name}"]:checked`)?.value;

export function choose(name, value) {
  document.querySelector(`input[name="${name}"][value="${value}"]`).checked = true;
}

export const hidden = (words) => element("span", "visually-hidden", words);

/** Says `words` to screen readers. */
export const announce = (words) => ($("announcement").textContent = words);

export const prefersReducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

function format(value, digits) {
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export const number = (value) => format(value, 0);
export const counted = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
export const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
export const milliseconds = (value) => format(value, value < 100 ? 1 : 0);
export const seconds = (value) => `${(value / 1000).toFixed(1)} s`;

export function duration(ms) {
  return ms < 1000 ? `${number(Math.max(1, Math.round(ms)))} ms` : `${format(ms / 1000, ms < 10_000 ? 2 : 1)} s`;
}

export function percent(share) {
  if (share < 0.001) return "< 0.1 %";
  return share > 0.999 ? "> 99.9 %" : `${(100 * share).toFixed(1)} %`;
}
