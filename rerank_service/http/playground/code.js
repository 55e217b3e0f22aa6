// The request as code for a shell and for Python. Any text of the user reaches the service unchanged and is never run.

/**
 * @typedef {object} CodeRequest
 * @property {string} url  address of the service, without the path of the API
 * @property {string | null} model  null: the service's default model
 * @property {string} query
 * @property {string[]} passages
 * @property {"END" | "NONE"} truncate
 * @property {number | null} windows  windows per long passage; null: long passages are not split
 * @property {number | null} threshold  smallest logit to keep; null: all
 * @property {boolean} needsKey
 */

// Valid in JSON, but they act on a terminal (C1 controls, DEL), end a line in some editors (U+2028), or show text in
// another order than it has (bidirectional controls, CVE-2021-42574).
const HARMFUL = /[\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;

/** A string in double quotes, for JSON and for Python: JSON's escapes mean the same in both. */
const quoted = (text) => JSON.stringify(text).replace(HARMFUL, escaped);
const escaped = (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
const shellQuoted = (text) => `'${text.replaceAll("'", String.raw`'\''`)}'`;
const threshold = (request) => (Number.isFinite(request.threshold) ? request.threshold : null);

/**
 * The request for a POSIX shell. With a threshold, jq keeps the passages above it.
 *
 * The body is a quoted here-document: the shell expands nothing in it, its length is unlimited, and no line of it can be
 * `JSON`, which would end it.
 *
 * @param {CodeRequest} request
 * @returns {string}
 */
export function curlCode(request) {
  const cut = threshold(request);
  const filter = cut === null ? "" : ` | jq ${shellQuoted(`.rankings |= map(select(.logit >= ${cut}))`)}`;
  const lines = [
    `curl -sS ${shellQuoted(`${request.url.replace(/\/+$/, "")}/v1/ranking`)}`,
    "-H 'Content-Type: application/json'",
    ...(request.needsKey ? ['-H "Authorization: Bearer $RERANK_SERVICE_API_KEY"'] : []),
    `--data-binary @- <<'JSON'${filter}`,
  ];
  return `${lines.join(" \\\n  ")}\n${bodyOf(request)}\nJSON\n`;
}

function bodyOf({ model, query, passages, truncate, windows }) {
  const fields = [
    ...(model === null ? [] : [`"model": ${quoted(model)}`]),
    `"query": {"text": ${quoted(query)}}`,
    `"passages": ${list(passages.map((text) => `{"text": ${quoted(text)}}`), "\n  ")}`,
    ...(windows === null ? [] : [`"passage_windows": {"max_per_passage": ${windows}}`]),
    `"truncate": ${quoted(truncate)}`,
  ];
  return `{\n  ${fields.join(",\n  ")}\n}`;
}

/** A list with one line per entry. `end` stands between the last entry and the bracket. */
const list = (entries, end) => (entries.length ? `[\n    ${entries.join(",\n    ")}${end}]` : "[]");

/**
 * The request for Python, with the service's client. It prints the logits and the passages.
 *
 * @param {CodeRequest} request
 * @returns {string}
 */
export function pythonCode(request) {
  const { url, model, query, passages, truncate, windows, needsKey } = request;
  const settings = [quoted(url), ...(model === null ? [] : [`model=${quoted(model)}`])];
  const options = [
    "query",
    "passages",
    ...(truncate === "END" ? [] : [`truncate=${quoted(truncate)}`]), // the client's default
    ...(windows === null ? [] : [`windows=PassageWindows(max_per_passage=${windows})`]),
  ];
  const cut = threshold(request);
  return [
    `from rerank_service.client import Client${windows === null ? "" : ", PassageWindows"}`,
    "",
    `query = ${quoted(query)}`,
    `passages = ${list(passages.map(quoted), ",\n")}`,
    "",
    ...(needsKey ? ["# The client reads the API key from RERANK_SERVICE_API_KEY."] : []),
    `with Client(${settings.join(", ")}) as client:`,
    `    ranking = client.rank(${options.join(", ")})`,
    "",
    ...(cut === null ? [] : [`kept = [passage for passage in ranking if passage.logit >= ${cut}]`]),
    `for passage in ${cut === null ? "ranking" : "kept"}:`,
    '    print(f"{passage.logit:.2f}", passage.text)',
    "",
  ].join("\n");
}
