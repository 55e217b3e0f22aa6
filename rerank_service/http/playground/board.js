// The board: one ranking with lines from the order before, or two rankings with lines between them.
import { $, announce, choice, counted, duration, element, signed } from "./dom.js";
import { drawLines, fitLines, highlightLine } from "./lines.js";
import { bm25Order, kendallTau, overlapAt } from "./order.js";
import { RankingList, stageEntries, timeEntries } from "./rows.js";

/** From this number of passages on, each row takes one line. */
const COMPACT_FROM = 13;
/** Number of places that count as the top of a long ranking. */
const TOP = 10;

export class Board {
  #first;
  #second;
  #result = $("result");
  #board = $("board");
  #lines = $("lines");
  #slider = $("threshold");
  #compared = null;
  #bm25 = null;
  #threshold = null;

  /** `onWhy(list, index)` is called for a row's button "Why?". */
  constructor(onWhy) {
    this.#first = new RankingList(onWhy);
    this.#second = new RankingList(onWhy);
    this.#board.append(this.#first.element, this.#second.element);
    this.#second.element.hidden = true;
    this.#slider.addEventListener("input", () => this.#readSlider());
    $("before").addEventListener("change", () => this.#showMoves());
    new ResizeObserver(() => fitLines(this.#lines, this.#moves())).observe(this.#board);
    addEventListener("resize", () => this.#lists().forEach((list) => list.markClamped()));
    for (const kind of ["pointerover", "pointerleave", "focusin", "focusout"]) {
      this.#board.addEventListener(kind, (event) => this.#highlight(event));
    }
  }

  get state() {
    return this.#result.dataset.state;
  }

  /** Logit from which passages are kept; null: all are kept, as always with two models, whose scales differ. */
  get threshold() {
    return this.#second.element.hidden ? this.#threshold : null;
  }

  set threshold(value) {
    this.#threshold = value;
    if (this.#isSingle()) this.#showCut();
  }

  /** Body of the request that gave the shown ranking. */
  get body() {
    return this.#first.ranked?.body ?? null;
  }

  showPreview(texts) {
    this.#second.element.hidden = true;
    this.#board.classList.toggle("compact", texts.length >= COMPACT_FROM);
    this.#board.classList.remove("two");
    this.#first.setTexts(texts);
    this.#first.showPreview();
    this.#lines.replaceChildren();
    this.#setState("preview", "Preview", texts.length ? "as pasted" : "");
  }

  shows(texts) {
    return this.#first.shows(texts);
  }

  /** Shows one ranking, or two rankings of the same passages. */
  showRankings(query, texts, rankings) {
    const isSameModel = this.#first.ranked?.body.model === rankings[0].body.model;
    if (!isSameModel && this.#first.ranked) this.#threshold = null; // a logit means nothing to another model
    const lists = [this.#first, this.#second].slice(0, rankings.length);
    this.#second.element.hidden = rankings.length < 2;
    this.#board.classList.toggle("two", rankings.length === 2);
    this.#setState("ranked", "Ranking", summaryOf(rankings));
    if (rankings.length === 2) this.#second.setTexts(texts);
    lists.forEach((list, at) => list.show(rankings[at]));
    this.#compared = { query, texts };
    const isNamed = rankings.length > 1;
    $("times").replaceChildren(...rankings.flatMap((ranked) => timesOf(isNamed ? ranked.body.model : null, ranked)));
    this.#showLoss(rankings);
    this.#showAgreement();
    this.#showMoves();
    if (rankings.length === 1) this.#showScale();
  }

  /** Keeps the ranking readable while the next request is written, marked as that of the previous one. */
  markStale() {
    this.#setState("stale", "Ranking", "of the previous request");
  }

  markRefused(index) {
    this.#first.markRefused(index);
  }

  setBusy(isBusy) {
    this.#board.setAttribute("aria-busy", isBusy);
  }

  /** `preview`: passages as pasted; `ranked`; `stale`: ranked, but the form has changed since. */
  #setState(state, title, summary) {
    this.#result.dataset.state = state;
    $("result-title").textContent = title;
    $("summary").textContent = summary;
    $("show-times").hidden = state === "preview";
    if (state === "preview") $("times").hidden = $("loss").hidden = $("agreement").hidden = true;
    $("times").hidden = $("show-times").hidden || $("show-times").getAttribute("aria-expanded") !== "true";
    $("scale").hidden = state === "preview" || this.#board.classList.contains("two");
  }

  #lists = () => (this.#isSingle() || this.state === "preview" ? [this.#first] : [this.#first, this.#second]);
  #isSingle = () => this.#first.ranked !== null && this.#second.element.hidden;

  /** The list whose order is the start of the lines, first place first. */
  #orderBefore() {
    if (!this.#isSingle()) return this.#first.ranked.order;
    const { query, texts } = this.#compared;
    if (choice("before") === "pasted") return [...texts.keys()];
    if (this.#bm25?.of !== this.#compared) this.#bm25 = { of: this.#compared, order: bm25Order(query, texts) };
    return this.#bm25.order; // kept, because it takes a while for long passages
  }

  #showMoves() {
    if (this.#isSingle()) {
      this.#first.showMoves(this.#orderBefore());
    } else {
      this.#first.showMoves(null);
      this.#second.showMoves(this.#first.ranked.order);
    }
    drawLines(this.#lines, this.#moves());
  }

  /** The lines to draw, see `drawLines`. */
  #moves() {
    if (this.#first.ranked === null) return [];
    const offset = this.#lines.getBoundingClientRect().top - this.#board.getBoundingClientRect().top;
    const [left, right] = this.#isSingle() ? [this.#first, this.#first] : [this.#first, this.#second];
    const [lefts, rights] = [left.heights(), right.heights()];
    const { order } = right.ranked;
    const was = new Map(this.#orderBefore().map((index, at) => [index, at]));
    return order.map((index, at) => {
      // In a single list, the place before is that of the row which has this place now.
      const from = this.#isSingle() ? lefts[order[was.get(index)]] : lefts[index];
      return { index, from: from - offset, to: rights[index] - offset, rise: was.get(index) - at, isTop: at < TOP };
    });
  }

  #highlight({ type, target }) {
    const row = type === "pointerover" || type === "focusin" ? target.closest?.(".row") : null;
    const index = row?.dataset.index ?? null;
    highlightLine(this.#lines, this.state === "preview" ? null : index);
    for (const list of this.#lists()) {
      for (const { row: other } of list.rows) other.classList.toggle("active", other.dataset.index === index);
    }
  }

  #showScale() {
    const { low, high } = this.#first.range;
    Object.assign(this.#slider, { min: low, max: high, step: (high - low) / 200 || 1 });
    $("low").textContent = signed(low);
    $("high").textContent = signed(high);
    const zero = high > low ? (100 * (0 - low)) / (high - low) : -1;
    $("zero").hidden = zero < 22 || zero > 78; // beside the two ends there is no room for a third number
    this.#board.style.setProperty("--zero", `${zero}%`);
    this.#board.classList.toggle("crosses-zero", zero > 0 && zero < 100);
    this.#slider.disabled = !(high > low);
    this.#showCut();
  }

  /** Rounds down, so that the passage whose bar ends at the thumb is kept. */
  #readSlider() {
    const { low, high } = this.#first.range;
    const scale = 10 ** Math.max(2, 2 - Math.floor(Math.log10(high - low)));
    const value = Math.floor(Number(this.#slider.value) * scale) / scale;
    this.#threshold = Number(this.#slider.value) <= Number(this.#slider.min) || value <= low ? null : value;
    this.#showCut(false);
  }

  #showCut(movesThumb = true) {
    const { low, high } = this.#first.range;
    const kept = this.#first.cut(this.#threshold);
    const count = this.#first.rows.length;
    const isAll = this.#threshold === null;
    const words = isAll ? `Keep all ${count}` : `Keep ${kept} of ${count}`;
    const number = String(this.#threshold).replace("-", "−");
    $("cut").textContent = isAll ? "" : number;
    $("kept").textContent = words;
    if (movesThumb) this.#slider.value = isAll ? low : this.#threshold;
    this.#slider.setAttribute("aria-valuetext", isAll ? words : `${words}: logit at least ${number}`);
    const share = isAll ? 0 : Math.min(1, Math.max(0, (this.#threshold - low) / (high - low)));
    this.#board.style.setProperty("--cut", `${100 * share}%`);
    this.#board.classList.toggle("has-cut", !isAll);
  }

  #showAgreement() {
    const isTwo = !this.#second.element.hidden;
    $("agreement").hidden = !isTwo;
    if (!isTwo) return;
    const [a, b] = [this.#first.ranked.order, this.#second.ranked.order];
    const k = Math.min(a.length, a.length > 2 * TOP ? TOP : 3);
    const same = Math.round(overlapAt(a, b, k) * k);
    const tau = a.length > 1 ? kendallTau(a, b) : 1;
    const figures = [
      [signed(tau), "Kendall’s tau", "1: the same order, −1: the reverse order"],
      [`${same} of ${k}`, `in both top ${k}`, `Passages that are among the first ${k} of both rankings`],
    ];
    const entries = figures.map(([figure, name, title]) => {
      const entry = element("p", "figure", element("b", "", figure), ` ${name}`);
      entry.title = title;
      return entry;
    });
    $("agreement").replaceChildren(...entries);
  }

  /** Says how many passages were truncated or not scored, and offers windows for them. */
  #showLoss(rankings) {
    const sentences = rankings.flatMap((ranked) => lossOf(ranked, rankings.length > 1));
    $("loss").hidden = sentences.length === 0;
    $("loss-words").textContent = sentences.join(" ");
    $("use-windows").hidden = !rankings.some((one) => one.numTruncated > one.numUnscored && !one.body.passage_windows);
  }

  /** Tells screen readers the result. */
  announceRanking() {
    const { order } = this.#first.ranked;
    announce(
      `Ranked ${$("summary").textContent}. First: passage with index ${order[0]}. ${$("loss-words").textContent}`,
    );
  }
}

function summaryOf(rankings) {
  const [{ order, numTokens, times }] = rankings;
  const passages = counted(order.length, "passage");
  if (rankings.length > 1) return `${passages}, two models`;
  return `${duration(times.get("total"))} · ${passages} · ${counted(numTokens, "token")}`;
}

function timesOf(name, { times, stages }) {
  const title = name === null ? [] : [element("div", "of-model", element("dt", "", "model"), element("dd", "model-name", name))];
  return [...title, ...timeEntries(times), ...stageEntries(stages)];
}

function lossOf({ body, stages, numTruncated, numUnscored }, isNamed) {
  const by = isNamed ? ` by ${body.model}` : "";
  const sentences = [];
  for (const { model, skipped } of stages) {
    if (!skipped || skipped === "keeps_all") continue; // a stage that would keep everything is not needed
    sentences.push(`The stage ${model} was left out (${skipped}); the ranking is that of the stages before.`);
  }
  if (numTruncated > numUnscored) {
    const count = numTruncated - numUnscored;
    const [were, exceed] = count === 1 ? ["was", "it exceeds"] : ["were", "they exceed"];
    const room = body.passage_windows ? "the number of parts that the service allows" : "the model's window";
    sentences.push(`${counted(count, "passage")} ${were} truncated${by}: together with the query, ${exceed} ${room}.`);
  }
  if (numUnscored > 0) {
    const [were, its] = numUnscored === 1 ? ["was", "its rank is"] : ["were", "their ranks are"];
    const count = counted(numUnscored, "passage");
    sentences.push(`${count} ${were} not scored${by}: the query fills the model's window, so ${its} meaningless.`);
  }
  return sentences;
}
