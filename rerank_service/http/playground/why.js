// Why a passage has its score: its text with the parts shaded that the model met, built from the API's explanation.
import { element, hidden, signed, svg } from "./dom.js";
import { shadeSentences, shadeTokens } from "./explanation.js";

/** Returns the shaded passage. */
export function drawWhy(query, passage, explanation) {
  return explanation.method === "token_alignment" ? alignment(query, passage, explanation) : sentences(passage, explanation);
}

/** A weight from -1 to 1 as one of eleven shades. */
const shade = (weight) => `shade-${weight < 0 ? "minus-" : ""}${Math.round(5 * Math.min(1, Math.abs(weight)))}`;

function part(tag, { text, weight, title }) {
  const made = element(tag, `token ${shade(weight)}`, text);
  made.title = title;
  return made;
}

// ---- Late interaction: each token of the query, and the token of the passage that it met

function alignment(query, passage, explanation) {
  const { segments, queryTokens } = shadeTokens(passage, explanation, query);
  const parts = segments.map((segment) => (segment.title ? part("span", segment) : document.createTextNode(segment.text)));
  const partAt = partsByStart(segments, parts);
  const picture = svg("svg", { class: "link-line", "aria-hidden": "true" });
  const panel = element("div", "why-panel");
  const buttons = [];
  const queryLine = element("p", "query-line");
  const characters = Array.from(query);
  let done = 0;
  for (const { text, start, end, similarity, passage: met } of queryTokens) {
    if (start < done) continue;
    const target = met && partAt.get(met.start);
    const token = queryToken(text, similarity, target, () => link(panel, picture, token, target));
    queryLine.append(characters.slice(done, start).join(""), token);
    buttons.push(token);
    done = end;
  }
  queryLine.append(characters.slice(done).join(""));
  queryLine.dir = "auto";
  queryLine.setAttribute("role", "group");
  queryLine.setAttribute("aria-label", "Tokens of the query");
  moveWithArrows(queryLine, buttons);
  const legend = element("p", "legend", "Point at a word of the query to see the word of the passage that it met. Darker: more similar.");
  panel.append(queryLine, textOf(...parts), legend, picture);
  for (const kind of ["pointerleave", "focusout"]) panel.addEventListener(kind, () => unlink(panel, picture));
  return panel;
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

function queryToken(text, similarity, met, onPoint) {
  const token = element("button", `token ${shade(similarity)}`, text);
  token.type = "button";
  token.tabIndex = -1;
  const words = met ? `met “${met.textContent}”, similarity ${similarity.toFixed(2)}` : "met no word of the passage";
  token.title = words;
  token.append(hidden(` ${words}`));
  for (const kind of ["pointerenter", "focus", "click"]) token.addEventListener(kind, onPoint);
  return token;
}

/** One stop of the Tab key for all tokens; the arrow keys move between them. */
function moveWithArrows(line, buttons) {
  if (buttons.length) buttons[0].tabIndex = 0;
  line.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const at = buttons.indexOf(event.target);
    if (!step || at < 0) return;
    event.preventDefault();
    const next = buttons[(at + step + buttons.length) % buttons.length];
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

/** Marks a query token and the passage token it met, and draws a line between them. */
function link(panel, picture, token, met) {
  unlink(panel, picture);
  token.classList.add("linked");
  if (!met) return;
  met.classList.add("linked");
  const frame = panel.getBoundingClientRect();
  const [a, b] = [token, met].map((one) => one.getClientRects()[0] ?? one.getBoundingClientRect());
  const [x1, y1] = [a.left + a.width / 2 - frame.left, a.bottom - frame.top];
  const [x2, y2] = [b.left + b.width / 2 - frame.left, b.top - frame.top];
  const middle = (y1 + y2) / 2;
  picture.setAttribute("viewBox", `0 0 ${frame.width} ${frame.height}`);
  picture.append(svg("path", { d: `M${x1},${y1} C${x1},${middle} ${x2},${middle} ${x2},${y2}` }));
}

function unlink(panel, picture) {
  for (const one of panel.querySelectorAll(".linked")) one.classList.remove("linked");
  picture.replaceChildren();
}

// ---- Every other engine: how much each sentence adds to the logit

function sentences(passage, explanation) {
  const text = textOf();
  for (const segment of shadeSentences(passage, explanation)) {
    const isSentence = segment.contribution !== undefined;
    text.append(isSentence ? part("span", segment) : segment.text);
    if (isSentence && segment.contribution !== null) text.append(element("sup", "contribution", signed(segment.contribution)));
  }
  const words =
    explanation.sentences.length === 1
      ? "The passage has one sentence, so there is nothing to leave out and compare with."
      : "How much the logit falls when a sentence is left out.";
  const mark = explanation.is_approximate ? [element("b", "badge", "approximate"), " "] : [];
  return element("div", "why-panel", text, element("p", "legend", ...mark, words));
}
