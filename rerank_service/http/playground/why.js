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
  const made = element(tag, `token ${shade(weight ?? 0)}`, text);
  if (title) made.title = title;
  return made;
}

// ---- Late interaction: each token of the query, and the token of the passage that it met

function alignment(query, passage, explanation) {
  const segments = shadeTokens(passage, explanation);
  const parts = segments.map((segment) => (segment.weight ? part("span", segment) : document.createTextNode(segment.text)));
  const at = startsOf(segments);
  const picture = svg("svg", { class: "link-line", "aria-hidden": "true" });
  const panel = element("div", "why-panel");
  const buttons = [];
  const queryLine = element("p", "query-line");
  const characters = Array.from(query);
  let done = 0;
  for (const match of explanation.matches) {
    const { start, end } = match.query;
    if (start < done) continue;
    queryLine.append(characters.slice(done, start).join(""));
    const met = match.passage && parts[at(match.passage.start)];
    const token = queryToken(characters.slice(start, end).join(""), match, met, () => link(panel, picture, token, met));
    buttons.push(token);
    queryLine.append(token);
    done = end;
  }
  queryLine.append(characters.slice(done).join(""));
  queryLine.dir = "auto";
  queryLine.setAttribute("role", "group");
  queryLine.setAttribute("aria-label", "Tokens of the query");
  moveWithArrows(queryLine, buttons);
  const text = element("p", "text whole", ...parts);
  text.dir = "auto";
  const legend = element("p", "legend", "Point at a word of the query to see the word of the passage that it met. Darker: more similar.");
  panel.append(queryLine, text, legend, picture);
  for (const kind of ["pointerleave", "focusout"]) panel.addEventListener(kind, () => unlink(panel, picture));
  return panel;
}

/** Returns a function from an offset in code points to the segment that contains it. */
function startsOf(segments) {
  const starts = [];
  let start = 0;
  for (const { text } of segments) {
    starts.push(start);
    start += Array.from(text).length;
  }
  return (offset) => starts.findLastIndex((one) => one <= offset);
}

function queryToken(text, { similarity }, met, onPoint) {
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
  const segments = shadeSentences(passage, explanation);
  const contributions = explanation.sentences.map(({ contribution }) => contribution);
  const text = element("p", "text whole");
  text.dir = "auto";
  let sentence = 0;
  for (const segment of segments) {
    if (segment.weight === undefined || segment.text.trim() === "") {
      text.append(segment.text);
      continue;
    }
    text.append(part("span", segment));
    const contribution = contributions[sentence++];
    if (contribution !== null && contribution !== undefined) text.append(element("sup", "contribution", signed(contribution)));
  }
  const only = contributions.length === 1;
  const words = only
    ? "The passage has one sentence, so there is nothing to leave out and compare with."
    : "How much the logit falls when a sentence is left out.";
  const legend = element("p", "legend", ...(explanation.is_approximate ? [element("b", "badge", "approximate"), " "] : []), words);
  return element("div", "why-panel", text, legend);
}
