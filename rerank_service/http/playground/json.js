// Query and passages from JSON and JSON Lines.

/** Fields, and columns of a table, that can have the passage. The first one present is used. */
export const TEXT_FIELDS = ["text", "passage", "content", "document", "body"];
export const TEXT_FIELD_NAMES = "text, passage, content, document or body";

const LIST_FIELDS = ["passages", "documents", "texts"]; // NIM; Cohere, Jina and Voyage; TEI

/**
 * Entries of a JSON file: a list of strings or objects, or one object.
 *
 * @param {string} text  with line feeds as line breaks
 * @yields {{place: string, query?: string | null, text?: string}}
 */
export function* jsonEntries(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Error(
      `Line ${lineOfError(text)} is not valid JSON. Correct it. ` +
        "If the file has one object per line, rename it to .jsonl; if it is plain text, to .txt.",
    );
  }
  if (!Array.isArray(value)) yield* entriesOf(value, "The file");
  else for (const [at, entry] of value.entries()) yield* entriesOf(entry, `Entry ${at + 1}`);
}

/**
 * Entries of a JSON Lines file: one string or object per line.
 *
 * @param {string} text  with line feeds as line breaks
 * @yields {{place: string, query?: string | null, text?: string}}
 */
export function* jsonLineEntries(text) {
  for (const [at, line] of text.split("\n").entries()) {
    if (line.trim() === "") continue;
    let value;
    try {
      value = JSON.parse(line);
    } catch {
      throw new Error(
        `Line ${at + 1} is not valid JSON. Write one string or object per line. ` +
          "If the file is one JSON list, rename it to .json; if it is plain text, to .txt.",
      );
    }
    yield* entriesOf(value, `Line ${at + 1}`);
  }
}

/** The passage of a string or object, or all passages of a request body. */
function* entriesOf(value, place) {
  if (typeof value === "string") return yield { place, text: value };
  const query = fieldOf(value, ["query"]) ?? undefined;
  if (query !== undefined) yield { place, query: textOf(query, `${place}, field query,`) };
  const list = fieldOf(value, LIST_FIELDS);
  if (Array.isArray(list)) {
    for (const [at, passage] of list.entries()) {
      const there = place === "The file" ? `Passage ${at + 1}` : `${place}, passage ${at + 1},`;
      yield { place: there, text: textOf(passage, there) };
    }
  } else if (query === undefined || Object.keys(value).length > 1) {
    yield { place, text: textOf(value, place) };
  }
}

/** A text, or the text in an object, such as `{"document": {"text": "..."}}`. */
function textOf(value, place) {
  const text = typeof value === "string" ? value : fieldOf(value, TEXT_FIELDS);
  if (typeof text === "string") return text;
  if (isObject(text)) return textOf(text, place);
  throw new Error(`${place} has no text in a field called ${TEXT_FIELD_NAMES}. Rename the field that has the passage.`);
}

function fieldOf(value, names) {
  if (!isObject(value)) return undefined;
  const own = new Map(Object.entries(value).map(([name, field]) => [name.toLowerCase(), field]));
  return own.get(names.find((name) => own.has(name)));
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

// ---- The line of a syntax error. Browsers' own messages name a position only sometimes, each in other words.

const TOKEN = /[ \t\n]*(?:([{}[\]:,])|("(?:[^"\\\n]|\\.)*")|(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null))/y;
/** For each kind of token inside brackets, the kinds that may follow: `s` is a string, `v` another value. */
const FOLLOWERS = { "[": "[{sv]", "{": "s}", ",": "[{sv", ":": "[{sv", "]": ",]}", "}": ",]}", s: ",:]}", v: ",]}" };

function lineOfError(text) {
  TOKEN.lastIndex = 0;
  let allowed = "[{sv";
  const open = [];
  for (let end = 0; ; end = TOKEN.lastIndex) {
    const [token, sign, string] = TOKEN.exec(text) ?? [];
    const kind = token === undefined ? null : (sign ?? (string ? "s" : "v"));
    const closes = { "]": "[", "}": "{" }[kind];
    if (kind === null || !allowed.includes(kind) || (closes && open.pop() !== closes)) {
      const rest = text.slice(end);
      const start = end + (rest.length - rest.trimStart().length); // the error is at the next token, not at the space before
      return text.slice(0, Math.min(start + 1, text.trimEnd().length)).split("\n").length;
    }
    if (kind === "[" || kind === "{") open.push(kind);
    allowed = open.length ? FOLLOWERS[kind] : ""; // nothing follows the outermost value
  }
}
