// One ranking as a list of rows, one row per passage. Rows are kept by index, so that they can move to their places.
import {
  button,
  counted,
  duration,
  element,
  hidden,
  milliseconds,
  percent,
  prefersReducedMotion,
  signed,
} from "./dom.js";

const MOVE = { duration: 560, easing: "cubic-bezier(.2, .7, .2, 1)" };
const isCode = (text) => /\n(?: {2,}|\t)\S/.test(text);

export class RankingList {
  #rows = [];
  #onWhy;

  /** `onWhy(list, index)` is called when a visitor asks why a passage has its place. */
  constructor(onWhy) {
    this.#onWhy = onWhy;
    this.ranked = null;
    this.name = element("h3", "model-name");
    this.summary = element("p", "quiet");
    this.list = element("ol", "passages");
    this.element = element("div", "ranking", element("div", "ranking-head", this.name, this.summary), this.list);
  }

  get rows() {
    return this.#rows;
  }

  /** Shows one row per text. Existing rows stay where they are until `show` reorders them. */
  setTexts(texts) {
    while (this.#rows.length > texts.length) this.#rows.pop().row.remove();
    texts.forEach((text, index) => {
      const parts = (this.#rows[index] ??= this.#makeRow(index));
      if (parts.text.textContent !== text) {
        parts.text.textContent = text;
        parts.text.classList.toggle("code", isCode(text));
        this.#expand(parts, false);
      }
      this.#closeWhy(parts);
      if (!parts.row.isConnected) this.list.append(parts.row);
    });
    this.markClamped();
  }

  shows(texts) {
    return texts.length === this.#rows.length && texts.every((text, at) => text === this.#rows[at].text.textContent);
  }

  /** Shows the passages in their original order, without scores. */
  showPreview() {
    this.ranked = null;
    for (const [index, parts] of this.#rows.entries()) {
      parts.place.textContent = index + 1;
      for (const part of [parts.moved, parts.mark, parts.logit, parts.probability]) part.textContent = "";
      parts.row.classList.remove("dropped", "first-dropped");
      this.#closeWhy(parts);
    }
    this.list.replaceChildren(...this.#rows.map(({ row }) => row));
  }

  /** Shows a ranking. Bars are linear in the logit, from the lowest shown to the highest. */
  show(ranked) {
    this.ranked = ranked;
    const { low, high } = this.range;
    ranked.order.forEach((index, at) => {
      const parts = this.#rows[index];
      const logit = ranked.logits[index];
      parts.mark.textContent = "";
      parts.place.textContent = at + 1;
      parts.logit.textContent = signed(logit);
      parts.logit.title = logit;
      parts.probability.textContent = percent(1 / (1 + Math.exp(-logit)));
      parts.fill.style.setProperty("--size", `${high > low ? (100 * (logit - low)) / (high - low) : 100}%`);
      this.#closeWhy(parts);
    });
    this.name.textContent = ranked.body.model ?? "";
    this.summary.textContent = `${duration(ranked.times.get("total"))} · ${counted(ranked.numTokens, "token")}`;
    this.#reorder(ranked.order);
    this.markClamped();
  }

  /** The lowest and the highest logit. */
  get range() {
    const { order, logits } = this.ranked;
    return { low: logits[order.at(-1)], high: logits[order[0]] };
  }

  /** Says how far each passage moved. `before` has passage indices, first place first; null: nothing to compare with. */
  showMoves(before) {
    const was = before && new Map(before.map((index, at) => [index, at]));
    this.ranked.order.forEach((index, at) => {
      const { moved } = this.#rows[index];
      const rise = was ? was.get(index) - at : 0;
      moved.replaceChildren();
      if (rise === 0) return;
      const arrow = element("span", "", `${rise > 0 ? "↑" : "↓"}${Math.abs(rise)}`);
      arrow.ariaHidden = "true";
      moved.append(arrow, hidden(rise > 0 ? `up ${rise}` : `down ${-rise}`));
      moved.classList.toggle("rise", rise > 0);
    });
  }

  /** Dims the passages below `threshold`; null: none. Returns the number that is kept. */
  cut(threshold) {
    const { order, logits } = this.ranked;
    const isDropped = (index) => threshold !== null && logits[index] < threshold;
    const kept = order.filter((index) => !isDropped(index)).length;
    order.forEach((index, at) => {
      const { row } = this.#rows[index];
      row.classList.toggle("dropped", isDropped(index));
      row.classList.toggle("first-dropped", at === kept);
    });
    return kept;
  }

  /** Heights of the rows' places, by passage index, in pixels from the top of the board. Rows that still move are
   * measured where they arrive. */
  heights() {
    return this.#rows.map(({ row, place }) => row.offsetTop + place.offsetTop + place.offsetHeight / 2);
  }

  markRefused(index) {
    if (index in this.#rows) this.#rows[index].mark.textContent = "refused";
  }

  /** Shows the button "more" for texts that are clamped. */
  markClamped() {
    // Reads all sizes before changing any row, so that the browser computes the layout once, not once per row.
    const clamped = this.#rows.map(({ text }) => text.scrollHeight > text.clientHeight + 1);
    this.#rows.forEach(({ text, more }, at) => {
      if (!text.classList.contains("whole")) more.hidden = !clamped[at];
    });
  }

  /** Shows `node` in place of the passage's text. */
  openWhy(index, node) {
    const { why, whyPanel, text, row } = this.#rows[index];
    whyPanel.replaceChildren(node);
    row.classList.add("open");
    text.hidden = true;
    whyPanel.hidden = false;
    why.setAttribute("aria-expanded", "true");
    why.firstChild.data = "Close";
  }

  isOpen(index) {
    return !this.#rows[index]?.whyPanel.hidden;
  }

  #closeWhy({ why, whyPanel, text, row }) {
    row.classList.remove("open");
    text.hidden = false;
    whyPanel.hidden = true;
    whyPanel.replaceChildren();
    why.setAttribute("aria-expanded", "false");
    why.firstChild.data = "Why?";
  }

  #makeRow(index) {
    const parts = {
      row: element("li", "row"),
      place: element("span", "place"),
      text: element("p", "text"),
      index: element("span", "index", `index ${index}`),
      moved: element("span", "moved"),
      mark: element("span", "refused"),
      whyPanel: element("div", "why"),
      fill: element("i", "fill"),
      logit: element("span", "logit"),
      probability: element("span", "probability"),
    };
    parts.more = button("link more", "More", () => this.#expand(parts, !parts.text.classList.contains("whole")));
    parts.why = button("link ask", "Why?", () => {
      if (parts.whyPanel.hidden) this.#onWhy(this, index);
      else this.#closeWhy(parts);
    });
    parts.why.setAttribute("aria-expanded", "false");
    parts.why.append(hidden(` Index ${index}`));
    parts.more.append(hidden(` of index ${index}`));
    parts.text.dir = "auto";
    parts.row.dataset.index = index;
    parts.more.hidden = parts.whyPanel.hidden = true;
    const actions = element("span", "actions", parts.more, parts.why);
    const meta = element("p", "meta", parts.moved, parts.index, parts.mark, actions);
    const score = element("p", "score", hidden("logit "), parts.logit, " ", hidden("sigmoid "), parts.probability);
    const body = element("div", "body", parts.text, parts.whyPanel, meta);
    parts.row.append(parts.place, body, element("div", "bar", parts.fill), score);
    return parts;
  }

  #expand(parts, isWhole) {
    parts.text.classList.toggle("whole", isWhole);
    parts.row.classList.toggle("whole", isWhole);
    parts.more.setAttribute("aria-expanded", isWhole);
    parts.more.firstChild.data = isWhole ? "Less" : "More";
  }

  /** Reorders the rows, and animates those in view. */
  #reorder(order) {
    const rows = this.#rows;
    const before = rows.map(({ row }) => row.getBoundingClientRect().top);
    const focused = this.list.contains(document.activeElement) ? document.activeElement : null;
    this.list.replaceChildren(...order.map((index) => rows[index].row));
    focused?.focus({ preventScroll: true });
    if (prefersReducedMotion()) return;
    const after = rows.map(({ row }) => row.getBoundingClientRect().top);
    rows.forEach(({ row }, index) => {
      const by = before[index] - after[index];
      const isSeen = [before[index], after[index]].some((top) => top > -300 && top < innerHeight + 300);
      if (by && isSeen) row.animate([{ transform: `translateY(${by}px)` }, { transform: "none" }], MOVE);
    });
  }
}

/** Entries of a definition list: one time per stage. */
export function timeEntries(times) {
  return [...times].map(([name, value]) => {
    const figure = element("dd", "", milliseconds(value), element("span", "quiet", " ms"));
    return element("div", name === "total" ? "total" : "", element("dt", "", name), figure);
  });
}

/** Entries of a definition list: the passages and the time of each stage of a cascade. */
export function stageEntries(stages) {
  return stages.map(({ model, count, skipped, ms }) => {
    const words = skipped ? "left out" : `${counted(count, "passage")}, ${milliseconds(ms ?? 0)}`;
    const figure = element("dd", "", words, element("span", "quiet", skipped ? "" : " ms"));
    return element("div", "stage", element("dt", "model-name", model), figure);
  });
}
