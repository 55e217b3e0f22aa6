// Orders of passages: BM25 as a baseline without a model, and how far two orders agree. An order lists indices, best first.

const K1 = 1.2; // Lucene's defaults
const B = 0.75;

// ICU groups these scripts into dictionary words, which differ between a query and a passage. Single characters do not.
const CJK = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}]/u;
const WORD = /[\p{L}\p{M}\p{N}]+/gu;

/**
 * Order of the texts by BM25, with the formula of Lucene. Texts with equal scores are in the order of their indices.
 *
 * @param {string} query
 * @param {string[]} texts
 * @returns {number[]} indices of all texts, best first
 */
export function bm25Order(query, texts) {
  const wordCounts = texts.map((text) => countsOf(wordsOf(text)));
  const lengths = wordCounts.map((counts) => [...counts.values()].reduce((sum, count) => sum + count, 0));
  const meanLength = lengths.reduce((sum, length) => sum + length, 0) / texts.length || 1;
  const scores = texts.map(() => 0);
  for (const [word, timesInQuery] of countsOf(wordsOf(query))) {
    const numHaving = wordCounts.filter((counts) => counts.has(word)).length;
    const rarity = Math.log(1 + (texts.length - numHaving + 0.5) / (numHaving + 0.5));
    wordCounts.forEach((counts, index) => {
      const count = counts.get(word) ?? 0;
      const saturation = count / (count + K1 * (1 - B + (B * lengths[index]) / meanLength));
      scores[index] += timesInQuery * rarity * saturation;
    });
  }
  return [...texts.keys()].sort((a, b) => scores[b] - scores[a] || a - b);
}

function wordsOf(text) {
  const words = segmentsOf(text.normalize("NFKC").toLowerCase());
  return words.flatMap((word) => (CJK.test(word) ? [...word] : [word]));
}

function segmentsOf(text) {
  if (!Intl.Segmenter) return text.match(WORD) ?? []; // Firefox before 125
  // A fixed language, so that the order does not depend on the visitor's browser.
  const segments = new Intl.Segmenter("en", { granularity: "word" }).segment(text);
  return Array.from(segments, ({ segment, isWordLike }) => (isWordLike ? segment : "")).filter((word) => word !== "");
}

function countsOf(words) {
  const counts = new Map();
  for (const word of words) counts.set(word, (counts.get(word) ?? 0) + 1);
  return counts;
}

/**
 * Kendall's tau of two orders of the same indices: 1 if they are equal, -1 if one is the reverse of the other. It is
 * 1 for fewer than two indices.
 *
 * @param {number[]} orderA
 * @param {number[]} orderB
 * @returns {number}
 */
export function kendallTau(orderA, orderB) {
  const places = placesOf(orderB);
  let balance = 0;
  orderA.forEach((first, at) => {
    for (const second of orderA.slice(at + 1)) balance += places.get(first) < places.get(second) ? 1 : -1;
  });
  const numPairs = (orderA.length * (orderA.length - 1)) / 2;
  return numPairs ? balance / numPairs : 1;
}

const placesOf = (order) => new Map(order.map((index, place) => [index, place]));

/**
 * Share of the `k` best of one order that are among the `k` best of the other. Orders shorter than `k` count whole.
 *
 * @param {number[]} orderA
 * @param {number[]} orderB
 * @param {number} k
 * @returns {number} 0 to 1
 */
export function overlapAt(orderA, orderB, k) {
  const top = new Set(orderB.slice(0, k));
  const best = orderA.slice(0, k);
  return best.length ? best.filter((index) => top.has(index)).length / best.length : 1;
}
