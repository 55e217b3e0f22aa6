// The playground: a client of the public API, using GET v1/models and POST v1/ranking only.
// Texts from the user and the service become text nodes, never markup. URLs are relative, so a route prefix works.

// The name includes the path, because two services may share an origin under different prefixes.
const KEY_NAME = `rerank-service key ${new URL(".", location.href).pathname}`;
const MOVE = { duration: 560, easing: "cubic-bezier(.2, .7, .2, 1)" };
const FIELDS = ["model", "truncate", "query", "passages"];
const EXAMPLE = {
  query: "How do I keep bread from going stale?",
  passages: [
    "A sourdough starter is a culture of wild yeast and lactic acid bacteria, fed with flour and water.",
    'Dealers call a quote "stale" when the market has moved and the price on the screen hasn\'t.',
    "Bread goes stale because its starch crystallises again and pushes water out to the crust; a loaf turns firm even in a sealed bag.",
    "The Bread Loaf Writers' Conference meets every summer near Middlebury, Vermont.",
    "To keep bread from going stale, store it in a paper bag at room temperature, or slice and freeze it. The refrigerator is the worst place: a little above freezing, starch crystallises soonest.",
    "Toasting makes stale bread soft again for a while: above 60 °C the starch crystals melt.",
  ],
};

const $ = (id) => document.getElementById(id);
const [query, passages, model, truncate, list] = ["query", "passages", "model", "truncate", "passage-list"].map($);

/** An error answer: the service's messages, each with the field it is about. */
class Refusal extends Error {
  constructor(status, envelope) {
    super(envelope?.message ?? `The service answered with status ${status} and no explanation.`);
    this.status = status;
    this.problems = envelope?.detail?.length ? envelope.detail : [{ loc: [], msg: this.message }];
  }
}

// ---- Calling the service

async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY_NAME);
  const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
  let response, text;
  try {
    response = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, { message: `The service at ${location.host} did not answer. Is it running?` });
  }
  if (!response.ok) throw new Refusal(response.status, parseJson(text));
  return { answer: parseJson(text), headers: response.headers };
}

function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // an error page of a proxy
  }
}

async function rank(body, signal) {
  const started = performance.now();
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
  const { answer, headers } = await ask("v1/ranking", options);
  return {
    answer,
    timing: headers.get("Server-Timing") ?? "",
    numTruncated: Number(headers.get("x-rerank-truncated-passages")),
    numUnscored: Number(headers.get("x-rerank-unscored-passages")),
    roundTrip: performance.now() - started,
  };
}

// ---- The request in the form

function requestBody() {
  return {
    ...(model.value && { model: model.value }),
    query: { text: query.value },
    passages: splitPassages().map((text) => ({ text })),
    truncate: truncate.value,
  };
}

function splitPassages() {
  const parts = passages.value.split(choice("separator") === "line" ? "\n" : /\n[^\S\n]*\n/);
  return parts.map((part) => part.trim()).filter((part) => part !== "");
}

const choice = (name) => document.querySelector(`input[name="${name}"]:checked`).value;

function fillForm({ query: text, passages: texts }) {
  query.value = text;
  passages.value = texts.join(choice("separator") === "line" ? "\n" : "\n\n");
}

// ---- The request as code

const LITERAL_INDENT = "    ";

/** The body, one line per passage. It is JSON and also a Python literal, as it has no null, true or false. */
function literal(body, indent = "") {
  const lines = Object.entries(body).map(([name, value]) => {
    const inner = Array.isArray(value) ? listLiteral(value, indent + LITERAL_INDENT) : objectLiteral(value);
    return `${indent}${LITERAL_INDENT}${JSON.stringify(name)}: ${inner}`;
  });
  return `{\n${lines.join(",\n")}\n${indent}}`;
}

const listLiteral = (values, indent) =>
  values.length ? `[\n${values.map((value) => `${indent}${LITERAL_INDENT}${objectLiteral(value)}`).join(",\n")}\n${indent}]` : "[]";
const objectLiteral = (value) => (value.text === undefined ? JSON.stringify(value) : `{"text": ${JSON.stringify(value.text)}}`);

/** Passes the body as a quoted here-document: the shell expands nothing in the body, the length is unlimited, and no line
 * of the body can be `JSON`, which would end the document. */
function curlOf(body) {
  const lines = [`curl -sS ${shellQuoted(rankingUrl())}`, "-H 'Content-Type: application/json'"];
  if (keyIsRequired()) lines.push('-H "Authorization: Bearer $NVIDIA_API_KEY"');
  lines.push("--data-binary @- <<'JSON'");
  return `${lines.join(" \\\n  ")}\n${literal(body)}\nJSON\n`;
}

function pythonOf(body) {
  const key = keyIsRequired();
  return [
    ...(key ? ["import os", ""] : []),
    "import httpx",
    "",
    "response = httpx.post(",
    `    ${JSON.stringify(rankingUrl())},`,
    ...(key ? ["    headers={\"Authorization\": f\"Bearer {os.environ['NVIDIA_API_KEY']}\"},"] : []),
    `    json=${literal(body, "    ")},`,
    "    timeout=60,",
    ")",
    "response.raise_for_status()",
    "print(response.text)",
    "",
  ].join("\n");
}

const rankingUrl = () => new URL("v1/ranking", location.href).href;
const shellQuoted = (text) => `'${text.replaceAll("'", String.raw`'\''`)}'`;
const snippet = () => (choice("language") === "curl" ? curlOf : pythonOf)(requestBody());

async function copySnippet() {
  const button = $("copy");
  try {
    await navigator.clipboard.writeText(snippet());
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("snippet")); // over plain http, browsers allow copying on localhost only
    button.textContent = "Selected";
  }
  announce(button.textContent);
  setTimeout(() => (button.textContent = "Copy"), 1600);
}

// ---- Rows: one per passage, kept by index, so that they can be animated

const rows = [];

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function makeRow() {
  const row = element("li", "row");
  const body = element("div", "body");
  const meta = element("p", "meta");
  const parts = {
    place: element("span", "place"),
    text: element("p", "text"),
    index: element("span", "index"),
    moved: element("span", "moved"),
    mark: element("span", "refused"),
    more: element("button", "link more", "Show all"),
    bar: element("div", "bar"),
    fill: element("i", "fill"),
    logit: element("span", "logit"),
    probability: element("span", "probability"),
  };
  const score = element("p", "score");
  parts.more.type = "button";
  parts.more.hidden = true;
  parts.more.addEventListener("click", () => expand(parts, parts.more.getAttribute("aria-expanded") !== "true"));
  parts.bar.append(parts.fill);
  meta.append(parts.index, parts.moved, parts.mark, parts.more);
  body.append(parts.text, meta);
  score.append(element("span", "visually-hidden", "logit "), parts.logit, " ");
  score.append(element("span", "visually-hidden", "sigmoid "), parts.probability);
  row.append(parts.place, body, parts.bar, score);
  return { row, ...parts };
}

function expand(parts, isWhole) {
  parts.text.classList.toggle("whole", isWhole);
  parts.more.setAttribute("aria-expanded", isWhole);
  parts.more.textContent = isWhole ? "Show less" : "Show all";
}

/** Shows one row per text. Existing rows stay where they are until `place` reorders them. */
function setRows(texts) {
  while (rows.length > texts.length) rows.pop().row.remove();
  texts.forEach((text, index) => {
    rows[index] ??= makeRow();
    const parts = rows[index];
    if (parts.text.textContent !== text) {
      parts.text.textContent = text;
      expand(parts, false);
    }
    parts.index.textContent = `index ${index}`;
    if (!parts.row.isConnected) list.append(parts.row);
  });
  updateShowAll();
}

/** Shows the button "Show all" for texts that are clamped. */
function updateShowAll() {
  // Reads all sizes before changing any row, so that the browser computes the layout once, not once per row.
  const clamped = rows.map(({ text }) => text.scrollHeight > text.clientHeight + 1);
  rows.forEach(({ text, more }, at) => {
    if (!text.classList.contains("whole")) more.hidden = !clamped[at];
  });
}

const prefersReducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Reorders the rows, and animates those in view. */
function place(order) {
  const before = rows.map(({ row }) => row.getBoundingClientRect().top);
  const focused = list.contains(document.activeElement) ? document.activeElement : null;
  list.replaceChildren(...order.map((index) => rows[index].row));
  focused?.focus({ preventScroll: true });
  if (prefersReducedMotion()) return;
  const after = rows.map(({ row }) => row.getBoundingClientRect().top);
  rows.forEach(({ row }, index) => {
    const by = before[index] - after[index];
    const isSeen = [before[index], after[index]].some((top) => top > -300 && top < innerHeight + 300);
    if (by && isSeen) row.animate([{ transform: `translateY(${by}px)` }, { transform: "none" }], MOVE);
  });
}

function showPreview() {
  const texts = splitPassages();
  setRows(texts);
  rows.forEach((parts, index) => {
    parts.place.textContent = "";
    parts.index.textContent = `index ${index}`;
    for (const part of [parts.moved, parts.mark, parts.logit, parts.probability]) part.textContent = "";
  });
  list.replaceChildren(...rows.map(({ row }) => row));
  setState("preview");
  $("ranking-title").textContent = "Preview";
  $("summary").textContent = texts.length ? "in the original order" : "";
}

const isShown = (texts) => texts.length === rows.length && texts.every(({ text }, at) => text === rows[at].text.textContent);

function showRanking({ answer, timing, roundTrip, numTruncated, numUnscored }) {
  const order = answer.rankings.map(({ index }) => index);
  const logits = answer.rankings.map(({ logit }) => logit);
  const low = Math.min(0, ...logits);
  const width = Math.max(0, ...logits) - low || 1;
  list.parentElement.style.setProperty("--zero", `${(-100 * low) / width}%`);
  setState("ranked");
  answer.rankings.forEach(({ index, logit }, at) => {
    const parts = rows[index];
    parts.mark.textContent = "";
    parts.place.textContent = at + 1;
    showMove(parts.moved, index - at);
    parts.logit.textContent = signed(logit);
    parts.logit.title = logit;
    parts.probability.textContent = percent(1 / (1 + Math.exp(-logit)));
    parts.fill.classList.toggle("negative", logit < 0);
    parts.fill.style.setProperty("--from", `${(100 * (Math.min(0, logit) - low)) / width}%`);
    parts.fill.style.setProperty("--size", `${(100 * Math.abs(logit)) / width}%`);
  });
  showLoss(numTruncated, numUnscored);
  place(order);
  updateShowAll();
  const title = $("ranking-title");
  title.textContent = "Ranking";
  if (title.getBoundingClientRect().top > innerHeight) title.scrollIntoView({ behavior: prefersReducedMotion() ? "instant" : "smooth" });
  showTiming(timing, roundTrip);
  return summaryOf(order.length, answer.usage.total_tokens);
}

function showMove(moved, by) {
  const words = by > 0 ? `up ${by}` : `down ${-by}`;
  moved.replaceChildren();
  if (by === 0) return;
  const arrow = element("span", "", `${by > 0 ? "↑" : "↓"} ${Math.abs(by)}`);
  arrow.ariaHidden = "true";
  moved.append(arrow, element("span", "visually-hidden", words));
}

/** Says how many passages were truncated or not scored. */
function showLoss(numTruncated, numUnscored) {
  const sentences = [];
  if (numTruncated > numUnscored) {
    const count = numTruncated - numUnscored;
    const [were, exceed] = count === 1 ? ["was", "it exceeds"] : ["were", "they exceed"];
    sentences.push(`${counted(count, "passage")} ${were} truncated: together with the query, ${exceed} the model's window.`);
  }
  if (numUnscored > 0) {
    const [were, its] = numUnscored === 1 ? ["was", "its rank is"] : ["were", "their ranks are"];
    sentences.push(`${counted(numUnscored, "passage")} ${were} not scored: the query fills the model's window, so ${its} meaningless.`);
  }
  $("loss").textContent = sentences.join(" ");
}

/** Parses W3C Server Timing, `name;dur=milliseconds, ...`. Each time is that of the slowest shard, so the times need
 * not add up to the total. */
function showTiming(header, roundTrip) {
  const stages = [...header.matchAll(/([\w-]+);dur=([\d.]+)/g)].map(([, name, dur]) => [name, Number(dur)]);
  const entries = [...stages, ["round trip", roundTrip]].map(([name, milliseconds]) => {
    const entry = element("div", name === "total" ? "total" : "");
    const value = element("dd", "", number(milliseconds < 100 ? milliseconds.toFixed(1) : milliseconds.toFixed(0)));
    value.append(element("span", "quiet", " ms"));
    entry.append(element("dt", "", name), value);
    return entry;
  });
  $("timing").replaceChildren(...entries);
}

/** States: `preview` (passages in their original order), `ranked`, `stale` (ranked, but the form has changed since). */
function setState(state) {
  list.dataset.state = state;
  $("columns").hidden = $("timing").hidden = $("loss").hidden = state === "preview";
}

const summaryOf = (count, tokens) => `${counted(count, "passage")} · ${counted(tokens, "token")}`;
const counted = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
const number = (value) => Number(value).toLocaleString("en", { maximumFractionDigits: 1, minimumFractionDigits: String(value).includes(".") ? 1 : 0 });
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
function percent(share) {
  if (share < 0.001) return "< 0.1 %";
  return share > 0.999 ? "> 99.9 %" : `${(100 * share).toFixed(1)} %`;
}

function announce(words) {
  $("announcement").textContent = words;
}

// ---- Errors, shown at their fields

function clearErrors() {
  for (const name of [...FIELDS, "key", "general"]) $(`${name}-error`).textContent = "";
  for (const name of [...FIELDS, "key"]) $(name).removeAttribute("aria-invalid");
}

function showRefusal(refusal) {
  const words = new Map();
  for (const { loc, msg } of refusal.problems) {
    const field = refusal.status === 401 ? "key" : FIELDS.find((name) => loc[0] === "body" && loc[1] === name) ?? "general";
    words.set(field, [...(words.get(field) ?? []), msg]);
    if (field === "passages" && loc[2] in rows) rows[loc[2]].mark.textContent = "refused";
  }
  const isFirstVisit = !keyIsRequired(); // no error yet: the form itself asks for the key
  if (words.has("key")) askForKey();
  for (const [field, messages] of words) {
    if (field === "key" && isFirstVisit) continue;
    $(`${field}-error`).textContent = messages.join("\n");
    $(field)?.setAttribute("aria-invalid", "true");
  }
  $([...words.keys()].find((field) => field !== "general"))?.focus();
}

// ---- The API key: kept in this tab's session storage only

const keyIsRequired = () => !$("key-form").hidden;

function askForKey() {
  sessionStorage.removeItem(KEY_NAME);
  $("key-form").hidden = $("key-entry").hidden = false;
  $("key-held").hidden = true;
  showSnippet();
}

function showKeyHeld() {
  $("key").value = "";
  $("key-form").hidden = $("key-held").hidden = false;
  $("key-entry").hidden = true;
  showSnippet();
}

async function useKey(event) {
  event.preventDefault();
  clearErrors();
  const key = $("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(key)) {
    showRefusal(new Refusal(401, { message: "A key consists of letters, digits and symbols, without spaces." }));
    return;
  }
  sessionStorage.setItem(KEY_NAME, key);
  if (await loadModels()) {
    showKeyHeld();
    announce("API key accepted");
    query.focus();
  }
}

// ---- Actions

async function loadModels() {
  try {
    const { answer } = await ask("v1/models");
    const options = answer.data.map(({ id, root }) => new Option(id === root ? id : `${id} (alias of ${root})`, id));
    model.replaceChildren(...options);
    return true;
  } catch (refusal) {
    showRefusal(refusal);
    return false;
  } finally {
    showSnippet();
  }
}

let running = null;

async function submit() {
  running?.abort();
  const controller = (running = new AbortController());
  const body = requestBody();
  clearErrors();
  if (!isShown(body.passages)) showPreview();
  setBusy(true);
  try {
    const ranked = await rank(body, controller.signal);
    const summary = showRanking(ranked);
    $("summary").textContent = summary;
    announce(`Ranked ${summary}. First: passage with index ${ranked.answer.rankings[0].index}. ${$("loss").textContent}`);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Refusal)) throw error;
    showPreview();
    showRefusal(error);
  } finally {
    if (running === controller) setBusy(false);
  }
}

function setBusy(isBusy) {
  $("rank").textContent = isBusy ? "Ranking" : "Rank";
  $("rank").classList.toggle("busy", isBusy);
  list.setAttribute("aria-busy", isBusy);
}

function onEdit() {
  running?.abort(); // its answer would be for the text before the edit
  $("count").textContent = counted(splitPassages().length, "passage");
  $("clear").textContent = query.value || passages.value ? "Clear" : "Fill in the example";
  showSnippet();
  if (list.dataset.state === "preview") showPreview();
  else if (list.dataset.state === "ranked") markStale();
}

/** Keeps the ranking readable while the next request is written, marked as that of the previous one. */
function markStale() {
  setState("stale");
  $("summary").textContent = "of the previous request";
}

function clearOrFillIn() {
  fillForm(query.value || passages.value ? { query: "", passages: [] } : EXAMPLE);
  clearErrors();
  showPreview();
  onEdit();
  query.focus();
}

function showSnippet() {
  $("snippet").textContent = snippet();
}

function onShortcut(event) {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  if ($("key-form").contains(event.target)) $("key-form").requestSubmit();
  else submit();
}

if (/Mac|iPhone|iPad/.test(navigator.platform)) $("modifier").textContent = "⌘";
$("request-form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("request-form").addEventListener("input", onEdit);
$("key-form").addEventListener("submit", useKey);
$("key-forget").addEventListener("click", () => {
  askForKey();
  $("key").focus();
});
$("clear").addEventListener("click", clearOrFillIn);
$("copy").addEventListener("click", copySnippet);
for (const input of document.querySelectorAll('input[name="language"]')) input.addEventListener("change", showSnippet);
document.addEventListener("keydown", onShortcut);
addEventListener("resize", updateShowAll);

fillForm(EXAMPLE);
showPreview();
onEdit();
if (sessionStorage.getItem(KEY_NAME) !== null) showKeyHeld();
loadModels();
