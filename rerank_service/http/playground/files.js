export function parseFile(name, text) {
  if (name.endsWith(".jsonl")) { const rows = text.split("\n").filter(Boolean).map((l) => JSON.parse(l)); return { query: rows[0].query ?? null, passages: rows.map((r) => r.text ?? r.passage) }; }
  return { query: null, passages: text.split(/\n\s*\n/) };
}
