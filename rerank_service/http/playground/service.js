// Calls of the public API: GET v1/models and POST v1/ranking. URLs are relative, so a route prefix works.

// The name includes the path, because two services may share an origin under different prefixes.
const KEY_NAME = `rerank-service key ${new URL(".", location.href).pathname}`;

/** The API key, kept in this tab's session storage only. */
export const key = {
  get: () => sessionStorage.getItem(KEY_NAME),
  set: (value) => sessionStorage.setItem(KEY_NAME, value),
  forget: () => sessionStorage.removeItem(KEY_NAME),
};

export const rankingUrl = () => new URL("v1/ranking", location.href).href;
export const serviceUrl = () => new URL(".", location.href).href.replace(/\/$/, "");

/** An error answer: the service's messages, each with the field it is about. Status 0: no answer. */
export class Refusal extends Error {
  constructor(status, envelope, retryAfterS = null) {
    const details = Array.isArray(envelope?.detail) ? envelope.detail : [];
    super(envelope?.message ?? details.map(({ msg }) => msg).join("; "));
    this.status = status;
    this.retryAfterS = retryAfterS;
    this.problems = details.length ? details : [{ loc: [], msg: this.message }];
  }
}

async function ask(path, options = {}) {
  const held = key.get();
  const headers = held === null ? {} : { Authorization: `Bearer ${held}` };
  let response, text;
  try {
    response = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, null);
  }
  const answer = parseJson(text);
  if (!response.ok || answer === null) throw new Refusal(response.status, answer, retryAfter(response));
  return { answer, headers: response.headers };
}

/** Seconds, or null. The service sends a number of seconds; a proxy's date is ignored. */
function retryAfter(response) {
  const value = response.headers.get("Retry-After");
  return /^\d+$/.test(value ?? "") ? Number(value) : null;
}

function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // an error page of a proxy
  }
}

/** The served models, the default first: `{name, aliases, stages}`. Only a cascade has stages, the ids of its models. */
export async function models() {
  const { answer } = await ask("v1/models");
  const byName = new Map();
  for (const { id, root, stages = [] } of answer.data) {
    if (!byName.has(root)) byName.set(root, { name: root, aliases: [], stages: stages.map(({ model }) => model) });
    if (id !== root) byName.get(root).aliases.push(id);
  }
  return [...byName.values()];
}

function post(body, signal) {
  const headers = { "Content-Type": "application/json" };
  return ask("v1/ranking", { method: "POST", headers, body: JSON.stringify(body), signal });
}

/** Ranks, in one request. `order` has passage indices, most relevant first; `logits` is in the request's order. */
export async function rank(body, signal) {
  const started = performance.now();
  const { answer, headers } = await post(body, signal);
  const logits = [];
  for (const { index, logit } of answer.rankings) logits[index] = logit;
  const { times, stageTimes } = timings(headers.get("Server-Timing") ?? "", performance.now() - started);
  return {
    body,
    order: answer.rankings.map(({ index }) => index),
    logits,
    numTokens: answer.usage.total_tokens,
    times,
    stages: stagesOf(headers.get("x-rerank-stages") ?? "", stageTimes),
    numTruncated: Number(headers.get("x-rerank-truncated-passages")),
    numUnscored: Number(headers.get("x-rerank-unscored-passages")),
  };
}

/** Milliseconds by name, from W3C Server Timing, `name;dur=milliseconds, ...`. Each time is that of the slowest shard,
 * so the times need not add up to the total. The stages of a cascade are apart, by their numbers. */
function timings(header, roundTrip) {
  const found = [...header.matchAll(/([\w-]+);dur=([\d.]+)/g)].map(([, name, dur]) => [name, Number(dur)]);
  const isStage = ([name]) => name.startsWith("stage-");
  const times = new Map([...found.filter((one) => !isStage(one)), ["round trip", roundTrip]]);
  const stageTimes = new Map(found.filter(isStage).map(([name, dur]) => [Number(name.slice(6)), dur]));
  return { times: new Map([["total", times.get("total") ?? roundTrip], ...times]), stageTimes };
}

/** The stages of a cascade, from `model=passages, model=0;skipped=reason`; none for other models. */
function stagesOf(header, stageTimes) {
  const found = [...header.matchAll(/([^=,\s]+)=(\d+)(?:;skipped=([\w-]+))?/g)];
  return found.map(([, model, count, skipped = null], at) => {
    return { model: decodeURIComponent(model), count: Number(count), skipped, ms: stageTimes.get(at + 1) ?? null };
  });
}

/** Explains one passage of the ranking that `body` asked for, in one request. */
export async function explain(body, index, signal) {
  const asked = { ...body, passages: [body.passages[index]], explain: { top_n: 1 } };
  const { answer } = await post(asked, signal);
  const explanation = answer.explanations?.[0];
  if (!explanation) throw new Refusal(200, { message: "This service does not explain its rankings." });
  return explanation;
}
