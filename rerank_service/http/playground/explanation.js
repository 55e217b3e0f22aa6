// The API's explanation of one passage as coloured pieces of text. Offsets in an explanation are Unicode code points.

/**
 * @typedef {{start: number, end: number}} Span  code points; `end` is exclusive
 * @typedef {{text: string, weight: number, title: string}} Segment  the texts of all segments together are the passage
 * @typedef {{text: string, start: number, end: number, similarity: number, passage: Span | null}} QueryToken
 */

/**
 * A passage explained by `token_alignment`. A piece that is the best match of several query tokens has the largest of
 * their similarities.
 *
 * Each piece starts and ends where a match does, so that a match's `passage.start` is the start of a segment.
 *
 * @param {string} passage
 * @param {object} explanation  an entry of the API's `explanations`
 * @param {string} query  gives the query tokens their texts
 * @returns {{segments: Segment[], queryTokens: QueryToken[]}} weights from 0 to 1; query tokens in the order of the query
 */
export function shadeTokens(passage, explanation, query = "") {
  const characters = Array.from(passage);
  const queryCharacters = Array.from(query);
  const queryTokens = explanation.matches.map(({ query: { start, end }, passage: met, similarity }) => ({
    text: queryCharacters.slice(start, end).join(""),
    start,
    end,
    similarity,
    passage: met,
  }));
  const met = queryTokens.filter((token) => token.passage !== null);
  const best = Array(characters.length).fill(null); // for each character, the most similar query token
  for (const token of met) {
    for (let at = token.passage.start; at < Math.min(token.passage.end, best.length); at += 1) {
      if (best[at] === null || best[at].similarity < token.similarity) best[at] = token;
    }
  }
  const cuts = met.flatMap((token) => [token.passage.start, token.passage.end]);
  const segments = pieces(characters.length, cuts).map(([start, end]) => ({
    text: characters.slice(start, end).join(""),
    weight: best[start] ? Math.min(1, Math.max(0, best[start].similarity)) : 0,
    title: best[start] ? titleOf(best[start]) : "",
  }));
  return { segments, queryTokens };
}

const titleOf = ({ text, similarity }) => `${text && `“${text}”, `}similarity ${similarity.toFixed(2)}`;

/**
 * A passage explained by `leave_one_sentence_out`. The weight is the contribution, divided by the largest absolute one.
 * Text between sentences has weight 0 and no `contribution`.
 *
 * @param {string} passage
 * @param {object} explanation  an entry of the API's `explanations`
 * @returns {(Segment & {contribution?: number | null})[]} weights from -1 to 1
 */
export function shadeSentences(passage, explanation) {
  const characters = Array.from(passage);
  const { sentences } = explanation;
  const largest = Math.max(...sentences.map(({ contribution }) => Math.abs(contribution ?? 0))) || 1;
  const cuts = sentences.flatMap(({ start, end }) => [start, end]);
  return pieces(characters.length, cuts).map(([start, end]) => {
    const text = characters.slice(start, end).join("");
    const sentence = sentences.find((one) => one.start <= start && end <= one.end);
    if (!sentence) return { text, weight: 0, title: "" };
    const { contribution } = sentence;
    if (contribution === null) return { text, weight: 0, title: "the only sentence", contribution };
    const title = `${contribution < 0 ? "lowers" : "raises"} the logit by ${Math.abs(contribution).toFixed(2)}`;
    return { text, weight: contribution / largest, title, contribution };
  });
}

/** The text from 0 to `length`, cut at the given offsets, without empty pieces. */
function pieces(length, cuts) {
  const inside = cuts.filter((cut) => cut > 0 && cut < length);
  const bounds = [...new Set([0, ...inside, length])].sort((a, b) => a - b);
  return bounds.slice(1).map((end, at) => [bounds[at], end]);
}
