// Query and passages from CSV (RFC 4180) and from tab-separated values.
import { TEXT_FIELD_NAMES, TEXT_FIELDS } from "./json.js";

/**
 * Entries of a table. Its first row names the columns, unless the table has a single column of passages.
 *
 * @param {string} text  with line feeds as line breaks
 * @param {string} separator  by default, the one of comma and semicolon that the first line has more of
 * @yields {{place: string, query?: string, text?: string}}
 */
export function* tableEntries(text, separator = separatorOf(text)) {
  let columns = null;
  for (const { line, fields } of records(text, separator)) {
    const place = `Line ${line}`;
    if (columns === null) {
      columns = columnsOf(fields, place);
      if (columns.isNamed) continue;
    }
    if (fields.length !== columns.count) {
      throw new Error(
        `${place} has ${fields.length} fields, but the first row has ${columns.count}. ` +
          `Put double quotes around a field that contains ${NAMES[separator]} or a line break.`,
      );
    }
    yield { place, query: fields[columns.query], text: fields[columns.text] };
  }
}

const NAMES = { ",": "a comma", ";": "a semicolon", "\t": "a tab" };

function separatorOf(text) {
  const first = text.trimStart().split("\n", 1)[0];
  return first.split(";").length > first.split(",").length ? ";" : ",";
}

function columnsOf(fields, place) {
  const names = fields.map((field) => field.trim().toLowerCase());
  const name = TEXT_FIELDS.find((one) => names.includes(one));
  if (name) return { count: fields.length, text: names.indexOf(name), query: names.indexOf("query"), isNamed: true };
  if (fields.length === 1 && names[0] !== "query") return { count: 1, text: 0, query: -1, isNamed: false };
  throw new Error(
    `${place} has no column called ${TEXT_FIELD_NAMES}. ` +
      "Name the columns in this line; call the passages' column text.",
  );
}

/** Rows with the line they start at, without blank lines. A quoted field may contain separators and line breaks. */
function* records(text, separator) {
  const plain = new RegExp(`[^${separator}\n]*`, "y");
  let at = 0;
  let line = 1;
  while (at < text.length) {
    const start = at;
    const fields = [];
    do {
      if (fields.length) at += 1; // the separator
      const quoted = text[at] === '"' ? quotedField(text, at, separator) : null;
      plain.lastIndex = at;
      const raw = quoted?.raw ?? plain.exec(text)[0];
      if (text[at] === '"' && !quoted && separator !== "\t") throw brokenQuotes(line + numBreaks(text.slice(start, at)));
      fields.push(quoted?.value ?? raw);
      at += raw.length;
    } while (text[at] === separator);
    if (fields.length > 1 || fields[0].trim() !== "") yield { line, fields };
    at += 1; // the line break
    line += numBreaks(text.slice(start, at));
  }
}

/** The field that starts with the quote at `at`, or null if its closing quote is missing or not the end of the field. */
function quotedField(text, at, separator) {
  let end = text.indexOf('"', at + 1);
  while (end >= 0 && text[end + 1] === '"') end = text.indexOf('"', end + 2); // two quotes are one quote of the text
  if (end < 0 || ![separator, "\n", undefined].includes(text[end + 1])) return null;
  return { raw: text.slice(at, end + 1), value: text.slice(at + 1, end).replaceAll('""', '"') };
}

// Programs that write tab-separated values rarely quote, so there a broken quote is part of the text.
const brokenQuotes = (line) =>
  new Error(
    `Line ${line} opens a double quote that is not closed at the end of a field. ` +
      "Write each quote inside a field twice.",
  );

const numBreaks = (text) => text.split("\n").length - 1;
