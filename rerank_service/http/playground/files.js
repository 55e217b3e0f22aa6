// Query and passages from a file that the visitor opens. The file stays in the browser.
import { jsonEntries, jsonLineEntries } from "./json.js";
import { tableEntries } from "./table.js";

const MAX_PASSAGES = 512; // the API's limit
const FENCE = /^\s*(```|~~~)/;

/** For each extension, a reader that yields `{place, query?, text?}`; `place` says where in the file, for errors. */
const READERS = {
  jsonl: jsonLineEntries,
  ndjson: jsonLineEntries,
  json: jsonEntries,
  csv: tableEntries,
  tsv: (text) => tableEntries(text, "\t"),
  txt: (text) => (/\n[^\S\n]*\n/.test(text.trim()) ? paragraphs(text) : lines(text)),
  md: (text) => paragraphs(text, FENCE),
};

/**
 * The query and the passages in a file. The end of the name chooses the format:
 *
 * - `.jsonl`, `.ndjson`: one string, object or request body per line;
 * - `.json`: a list of strings or objects, or a request body of this API, Cohere's or TEI's;
 * - `.csv`, `.tsv`: one passage per row, in the column `text`, `passage`, `content`, `document` or `body`;
 * - `.txt`, `.md`: one passage per paragraph; a `.txt` file without blank lines has one passage per line.
 *
 * Objects have the passage in a field with one of the column names. `query` may be a field or column.
 *
 * @param {string} name
 * @param {string} text
 * @returns {{query: string | null, passages: string[]}} without blank passages; `query` is null if the file has none
 * @throws {Error} whose message says where the problem is and how to solve it
 */
export function parseFile(name, text) {
  const extension = /\.([^.]*)$/.exec(name)?.[1].toLowerCase();
  if (!Object.hasOwn(READERS, extension ?? "")) {
    throw new Error("This type of file is not supported. Open a .jsonl, .json, .csv, .tsv, .txt or .md file.");
  }
  if (text.includes("\0")) throw new Error("The file is not UTF-8 text. Save it as UTF-8 text and open it again.");
  const content = text.replace(/^\ufeff/, "").replace(/\r\n?/g, "\n");
  let query = null;
  const passages = [];
  for (const { place, query: asked, text: passage } of READERS[extension](content)) {
    if (asked?.trim()) {
      if (query !== null && asked !== query) {
        throw new Error(`${place} has a different query from the entries before it. Keep the passages of one query only.`);
      }
      query = asked;
    }
    if (!passage?.trim()) continue;
    if (passages.length === MAX_PASSAGES) {
      throw new Error(`The file has more than ${MAX_PASSAGES} passages. Remove the passages from ${lowered(place)} on.`);
    }
    passages.push(passage);
  }
  if (!passages.length) throw new Error("The file has no passages. Add at least one.");
  return { query, passages };
}

const lowered = (place) => place.charAt(0).toLowerCase() + place.slice(1);

function* lines(text) {
  for (const [at, line] of text.split("\n").entries()) yield { place: `Line ${at + 1}`, text: line.trim() };
}

/** Blocks between blank lines, with their indentation. Code between two lines that match `fence` is not divided. */
function* paragraphs(text, fence = null) {
  let block = [];
  let start = 1;
  let opened = null;
  for (const [at, line] of text.split("\n").entries()) {
    if (line.trim() === "" && opened === null) {
      yield { place: `Line ${start}`, text: block.join("\n").trimEnd() };
      block = [];
      start = at + 2;
      continue;
    }
    block.push(line);
    const mark = fence?.exec(line)?.[1];
    if (mark && (opened === null || opened === mark)) opened = opened === null ? mark : null;
  }
  yield { place: `Line ${start}`, text: block.join("\n").trimEnd() };
}
