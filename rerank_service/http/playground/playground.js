// The playground: a client of the public API. This file joins the parts of the page: form, service, board.
import { Board } from "./board.js";
import { copied, startCodeBox } from "./codebox.js";
import { $, announce, choice, choose, element, prefersReducedMotion, seconds } from "./dom.js";
import { clearErrors, showRefusal, wordsOf } from "./errors.js";
import { EXAMPLE } from "./example.js";
import { clearOrFillIn, fillForm, passagesInForm, requestBodies, showCount, startFiles, stateOfForm } from "./form.js";
import { askForKey, keyIsRequired, showKeyHeld, startKeyForm } from "./keyform.js";
import { chosenModels, offerModels } from "./models.js";
import { explain, models, rank, Refusal, serviceUrl } from "./service.js";
import { decodeState, encodeState } from "./share.js";
import { drawWhy } from "./why.js";

const board = new Board(onWhy);
let running = null;
let wantedModels = [];

// ---- Models

async function loadModels() {
  try {
    offerModels(await models(), wantedModels);
    return true;
  } catch (error) {
    refuse(error);
    return false;
  }
}

function refuse(error, prefix = "") {
  if (!(error instanceof Refusal)) throw error;
  const isFirstVisit = error.status === 401 && !keyIsRequired(); // no error yet: the form itself asks for the key
  if (error.status === 401) askForKey();
  const places = showRefusal(error, prefix);
  if (isFirstVisit) clearErrors();
  for (const { loc } of error.problems) if (loc[1] === "passages") board.markRefused(loc[2]);
  const controls = { model: document.querySelector("#models input"), truncate: $("fitting") };
  const place = places.find((one) => one !== "general");
  (controls[place] ?? $(place))?.focus();
}

// ---- Ranking: one request per model and press

async function submit() {
  if (running) return;
  const controller = (running = new AbortController());
  const { query, passages } = stateOfForm();
  const bodies = requestBodies();
  clearErrors();
  if (!board.shows(passages)) board.showPreview(passages);
  const stopTimer = startTimer();
  try {
    const rankings = await Promise.all(bodies.map((body) => rankNamed(body, bodies.length > 1, controller.signal)));
    board.showRankings(query, passages, rankings);
    board.announceRanking();
    comeIntoView();
  } catch (error) {
    if (error.name === "AbortError") return;
    controller.abort(); // the other model's request, if there is one
    board.showPreview(passages);
    refuse(error, error.prefix);
  } finally {
    if (running === controller) running = null;
    stopTimer();
  }
}

async function rankNamed(body, isNamed, signal) {
  try {
    return await rank(body, signal);
  } catch (error) {
    error.prefix = isNamed ? `${body.model}: ` : "";
    throw error;
  }
}

/** Shows a spinner and the running time on the button, until the returned function is called. */
function startTimer() {
  const started = performance.now();
  const timer = element("span", "timer");
  timer.ariaHidden = "true";
  const tick = () => (timer.textContent = seconds(performance.now() - started));
  tick();
  const ticking = setInterval(tick, 100);
  setBusy(true, element("span", "spinner"), "Ranking", timer);
  return () => {
    clearInterval(ticking);
    setBusy(false, "Rank");
  };
}

function setBusy(isBusy, ...label) {
  $("rank").replaceChildren(...label);
  $("rank").classList.toggle("busy", isBusy);
  $("stop").hidden = !isBusy;
  $("shortcut").hidden = isBusy;
  board.setBusy(isBusy);
}

function stop() {
  running?.abort();
  $("rank").focus();
}

function comeIntoView() {
  const title = $("result-title");
  if (title.getBoundingClientRect().top <= innerHeight) return;
  title.scrollIntoView({ behavior: prefersReducedMotion() ? "instant" : "smooth" });
}

function onEdit() {
  running?.abort(); // its answer would be for the form before the edit
  if (location.hash) history.replaceState(null, "", location.pathname + location.search); // it describes another form
  showCount();
  if (board.state === "preview") board.showPreview(passagesInForm());
  else if (board.state === "ranked") board.markStale();
}

// ---- Why: one request for one passage

async function onWhy(list, index) {
  const { body } = list.ranked ?? {};
  if (!body) return;
  const known = (list.ranked.explanations ??= new Map());
  const show = (explanation) => list.openWhy(index, drawWhy(body.query.text, body.passages[index].text, explanation));
  if (known.has(index)) return show(known.get(index));
  list.openWhy(index, element("p", "asking", element("span", "spinner"), "Asking the model"));
  try {
    known.set(index, await explain(body, index));
    if (list.isOpen(index) && list.ranked?.body === body) show(known.get(index));
    announce(`Explained the passage with index ${index}`);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (list.isOpen(index)) list.openWhy(index, element("p", "error", wordsOf(error)));
  }
}

// ---- Sharing: the state is in the fragment of the address, which browsers do not send

async function share() {
  const state = { ...stateOfForm(), before: choice("before"), threshold: board.threshold };
  try {
    history.replaceState(null, "", `#${await encodeState(state)}`);
  } catch (error) {
    return toast(error.message); // too much for a link
  }
  const isCopied = await copied(location.href);
  const length = location.href.length > 8000 ? " It is long; some apps cut long links." : "";
  toast(
    `${isCopied ? "Link copied." : "The link is in the address bar."} It holds the query and the passages.${length}`,
  );
}

/** Fills the form from the address. Returns whether the address has a state. */
async function openShared() {
  if (location.hash.length < 2) return false;
  const state = await decodeState(location.hash.slice(1));
  if (state === null) {
    toast("This link is damaged, so the page shows the example.");
    return false;
  }
  fillForm(state);
  if (["pasted", "bm25"].includes(state.before)) choose("before", state.before);
  board.threshold = Number.isFinite(state.threshold) ? state.threshold : null;
  wantedModels = Array.isArray(state.models) ? state.models : [];
  return true;
}

let fading = null;

function toast(words) {
  $("toast").textContent = words;
  $("toast").classList.add("shown");
  clearTimeout(fading);
  fading = setTimeout(() => $("toast").classList.remove("shown"), 5000);
}

// ---- The page

function currentRequest() {
  const [body] = requestBodies();
  return {
    url: serviceUrl(),
    model: body.model ?? null,
    query: body.query.text,
    passages: body.passages.map(({ text }) => text),
    truncate: body.truncate,
    windows: body.passage_windows?.max_per_passage ?? null,
    threshold: board.threshold,
    needsKey: keyIsRequired(),
  };
}

function onShortcut(event) {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  if ($("key-form").contains(event.target)) $("key-form").requestSubmit();
  else submit();
}

function listen() {
  $("request-form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  $("request-form").addEventListener("input", onEdit);
  $("stop").addEventListener("click", stop);
  $("retry").addEventListener("click", async () => {
    clearErrors();
    if (chosenModels().length > 0 || (await loadModels())) submit();
  });
  $("clear").addEventListener("click", () => {
    clearOrFillIn();
    clearErrors();
    board.showPreview(passagesInForm());
    onEdit();
    $("query").focus();
  });
  $("use-windows").addEventListener("click", () => {
    $("fitting").value = "WINDOWS";
    onEdit();
    submit();
  });
  $("show-times").addEventListener("click", () => {
    const isShown = $("times").hidden;
    $("times").hidden = !isShown;
    $("show-times").setAttribute("aria-expanded", isShown);
  });
  $("share").addEventListener("click", share);
  document.addEventListener("keydown", onShortcut);
  addEventListener("hashchange", start);
}

async function start() {
  running?.abort();
  if (!(await openShared())) fillForm(EXAMPLE);
  clearErrors();
  showCount();
  board.showPreview(passagesInForm());
  loadModels();
}

if (/Mac|iPhone|iPad/.test(navigator.platform)) $("modifier").textContent = "⌘";
startKeyForm(async () => {
  if (!(await loadModels())) return;
  showKeyHeld();
  announce("API key accepted");
  $("query").focus();
});
startFiles((words) => {
  clearErrors();
  onEdit();
  board.showPreview(passagesInForm());
  toast(words);
});
startCodeBox(currentRequest);
listen();
start();
