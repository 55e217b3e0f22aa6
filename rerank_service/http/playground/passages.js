// The passages as text of one field: how the text is split into passages, and written back.

const DASHES = /^-{3,}$/gm;

/** Splits at blank lines, at line breaks, or at lines of dashes. Indentation stays, except where each line is a passage. */
export function splitPassages(text, separator) {
  const parts = text.split(SPLITS[separator](text));
  const trimmed = separator === "line" ? parts.map((part) => part.trim()) : parts.map(withoutBlankEdges);
  return trimmed.filter((part) => part !== "");
}

const SPLITS = {
  line: () => /\r?\n/,
  blank: () => /\n[^\S\n]*\n/,
  dashes: (text) => new RegExp(`^${longestDashes(text)}$`, "m"),
};

const withoutBlankEdges = (part) => part.replace(/^([^\S\n]*\n)+/, "").trimEnd();

/** Of lines of dashes, the longest separate the passages; shorter ones belong to a passage, as in Markdown. */
const longestDashes = (text) => (text.match(DASHES) ?? ["---"]).reduce((a, b) => (a.length >= b.length ? a : b));

/** Writes passages so that `splitPassages` finds them again. */
export function joinPassages(passages, separator) {
  if (separator === "line") return passages.join("\n");
  if (separator === "blank") return passages.join("\n\n");
  const inside = passages.flatMap((passage) => passage.match(DASHES) ?? []);
  const dashes = inside.length ? `${longestDashes(inside.join("\n"))}-` : "---";
  return passages.join(`\n${dashes}\n`) + (inside.length ? `\n${dashes}` : "");
}

/** The separator that fits these passages: `preferred` if possible. */
export function separatorFor(passages, preferred) {
  const keeps = (separator) => {
    const again = splitPassages(joinPassages(passages, separator), separator);
    return again.length === passages.length && again.every((text, at) => text === passages[at]);
  };
  return [preferred, "blank", "line", "dashes"].find(keeps) ?? "dashes";
}
