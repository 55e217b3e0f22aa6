// Why a passage has its score: its text, shaded by the API's explanation.
import { element, signed, svg } from "./dom.js";
import { shadeSentences, shadeTokens } from "./explanation.js";

/** Returns the shaded passage. */
export function drawWhy(query, passage, explanation) {
  if (explanation.method === "token_alignment") return alignment(query, passage, explanation);
  return sentences(passage, explanation);
}

/** A weight from -1 to 1 as one of eleven shades. */
const shade = (weight) => `shade-${weight < 0 ? "minus-" : ""}${Math.round(5 * Math.min(1, Math.abs(weight)))}`;

/** Cosines of tokens crowd between 0.4 and 1; squares tell them apart. */
const tokenShade = (similarity) => shade(Math.max(0, similarity) ** 2);

const plain = (text) => document.createTextNode(text);

function part(text, title, shadeName) {
  const made = element("span", `token ${shadeName}`, text);
  made.title = title;
  return made;
}

// ---- Late interaction: each token of the query, and the most similar token of the passage

const LEGEND = "Point at a word of the query to see its most similar word in the passage. Darker: more similar.";

function alignment(query, passage, explanation) {
  const { segments, queryTokens } = shadeTokens(passage, explanation, query);
  const parts = segments.map(({ text, weight, title }) =>
    title ? part(text, title, tokenShade(weight)) : plain(text),
  );
  const partAt = partsByStart(segments, parts);
  const links = new Links(element("p", "legend", LEGEND));
  const queryLine = element("p", "query-line");
  const characters = Array.from(query);
  let done = 0;
  for (const token of queryTokens) {
    if (token.start < done) continue;
    queryLine.append(characters.slice(done, token.start).join(""), queryToken(token, partAt, links));
    done = token.end;
  }
  queryLine.append(characters.slice(done).join(""));
  queryLine.dir = "auto";
  queryLine.setAttribute("role", "group");
  queryLine.setAttribute("aria-label", "Tokens of the query");
  moveWithArrows(queryLine);
  links.panel.prepend(queryLine, textOf(...parts));
  return links.panel;
}

function textOf(...parts) {
  const text = element("p", "text whole", ...parts);
  text.dir = "auto";
  return text;
}

/** The part that starts at an offset in code points. */
function partsByStart(segments, parts) {
  const byStart = new Map();
  let start = 0;
  segments.forEach(({ text }, at) => {
    byStart.set(start, parts[at]);
    start += Array.from(text).length;
  });
  return byStart;
}

/** A token that can be pointed at. It is no button, because buttons break the joined letters of Arabic. */
function queryToken({ text, similarity, passage }, partAt, links) {
  const met = passage && partAt.get(passage.start);
  const other = met ? `“${met.textContent}”` : "a token without text";
  const words = `“${text}” is most similar to ${other}: ${similarity.toFixed(2)}`;
  const token = part(text, words, tokenShade(similarity));
  token.tabIndex = -1;
  token.setAttribute("role", "button");
  token.setAttribute("aria-label", words);
  for (const kind of ["pointerenter", "focus"]) token.addEventListener(kind, () => links.show(token, met, words));
  return token;
}

/** One stop of the Tab key for all tokens; the arrow keys move between them. */
function moveWithArrows(line) {
  const tokens = [...line.querySelectorAll(".token")];
  if (tokens.length) tokens[0].tabIndex = 0;
  line.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const at = tokens.indexOf(event.target);
    if (!step || at < 0) return;
    event.preventDefault();
    const forward = getComputedStyle(line).direction === "rtl" && event.key.match(/Left|Right/) ? -step : step;
    const next = tokens[(at + forward + tokens.length) % tokens.length];
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

/** The line from a query token to its most similar passage token, and their similarity in words. */
class Links {
  #picture = svg("svg", { class: "link-line", "aria-hidden": "true" });
  #legend;

  constructor(legend) {
    this.#legend = legend;
    this.panel = element("div", "why-panel", legend, this.#picture);
    for (const kind of ["pointerleave", "focusout"]) this.panel.addEventListener(kind, () => this.hide());
  }

  show(token, met, words) {
    this.hide();
    this.#legend.textContent = words;
    token.classList.add("linked");
    if (!met) return;
    met.classList.add("linked");
    const frame = this.panel.getBoundingClientRect();
    const [a, b] = [token, met].map((one) => one.getClientRects()[0]);
    const [x1, x2] = [a, b].map(({ left, width }) => left + width / 2 - frame.left);
    const [top, height] = [a.bottom - frame.top, b.top - a.bottom];
    const [left, width] = [Math.min(x1, x2) - 2, Math.abs(x1 - x2) + 4];
    // The picture covers the line only, not the words at its ends.
    const place = { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` };
    Object.assign(this.#picture.style, place);
    this.#picture.setAttribute("viewBox", `${left} 0 ${width} ${height}`);
    this.#picture.append(svg("path", { d: `M${x1},0 C${x1},${height / 2} ${x2},${height / 2} ${x2},${height}` }));
  }

  hide() {
    for (const one of this.panel.querySelectorAll(".linked")) one.classList.remove("linked");
    this.#picture.replaceChildren();
    this.#legend.textContent = LEGEND;
  }
}

// ---- Every other engine: how much each sentence adds to the logit

function sentences(passage, explanation) {
  const text = textOf();
  for (const { text: piece, weight, title, contribution } of shadeSentences(passage, explanation)) {
    const isSentence = contribution !== undefined;
    text.append(isSentence ? part(piece, title, shade(weight)) : piece);
    if (isSentence && contribution !== null) text.append(element("sup", "contribution", signed(contribution)));
  }
  const words =
    explanation.sentences.length === 1
      ? "The passage has only one sentence, so there is nothing to compare it with."
      : "Numbers: how much the logit falls if the sentence is left out.";
  const mark = explanation.is_approximate ? [element("b", "badge", "approximate"), " "] : [];
  return element("div", "why-panel", text, element("p", "legend", ...mark, words));
}
