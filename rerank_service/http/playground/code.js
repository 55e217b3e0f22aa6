export const curlCode = (r) => `curl -sS '${r.url}/v1/ranking' \\\n  -H 'Content-Type: application/json' \\\n  --data-binary @- <<'JSON'\n${JSON.stringify({ query: { text: r.query }, passages: r.passages.map((text) => ({ text })) }, null, 2)}\nJSON\n`;
export const pythonCode = (r) => `from rerank_service.client import Client\n\n# threshold ${r.threshold}\n`;
