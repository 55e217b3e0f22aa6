export function shadeTokens(passage, explanation) {
  const c = Array.from(passage), best = new Map();
  for (const m of explanation.matches) if (m.passage) { const k = m.passage.start; if (!best.has(k) || best.get(k).similarity < m.similarity) best.set(k, { ...m, end: m.passage.end }); }
  const out = []; let done = 0;
  for (const [start, m] of [...best].sort((a, b) => a[0] - b[0])) { if (start > done) out.push({ text: c.slice(done, start).join(""), weight: 0, title: "" }); out.push({ text: c.slice(start, m.end).join(""), weight: m.similarity, title: `similarity ${m.similarity.toFixed(2)}` }); done = m.end; }
  if (done < c.length) out.push({ text: c.slice(done).join(""), weight: 0, title: "" });
  return out;
}
export function shadeSentences(passage, explanation) {
  const c = Array.from(passage), most = Math.max(...explanation.sentences.map((s) => Math.abs(s.contribution ?? 0))) || 1;
  return explanation.sentences.map((s) => ({ text: c.slice(s.start, s.end).join(""), weight: (s.contribution ?? 0) / most, title: "" }));
}
