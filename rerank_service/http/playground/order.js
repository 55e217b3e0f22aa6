export function bm25Order(query, texts) {
  const seg = (t) => [...new Intl.Segmenter(undefined, { granularity: "word" }).segment(t.toLowerCase())].filter((s) => s.isWordLike).map((s) => s.segment);
  const docs = texts.map(seg), q = seg(query), avg = docs.reduce((a, d) => a + d.length, 0) / (docs.length || 1);
  const df = new Map(); for (const d of docs) for (const w of new Set(d)) df.set(w, (df.get(w) ?? 0) + 1);
  const score = docs.map((d) => q.reduce((s, w) => { const f = d.filter((x) => x === w).length; const idf = Math.log(1 + (docs.length - (df.get(w) ?? 0) + .5) / ((df.get(w) ?? 0) + .5)); return s + idf * f * 2.2 / (f + 1.2 * (.25 + .75 * d.length / avg)); }, 0));
  return texts.map((_, i) => i).sort((a, b) => score[b] - score[a] || a - b);
}
export function kendallTau(a, b) { const at = new Map(b.map((x, i) => [x, i])); let s = 0, n = a.length; for (let i = 0; i < n; i++) for (let j = i + 1; j < n; j++) s += at.get(a[i]) < at.get(a[j]) ? 1 : -1; return s / (n * (n - 1) / 2); }
export const overlapAt = (a, b, k) => a.slice(0, k).filter((x) => b.slice(0, k).includes(x)).length / k;
