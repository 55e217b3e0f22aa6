// Errors in plain words: at the field they are about, or below the button, with the time after which to try again.
import { $ } from "./dom.js";

const FIELDS = ["model", "truncate", "query", "passages"];
/** Where an error about a field of the API is shown. */
const PLACES = { passage_windows: "truncate" };

const HEADLINES = {
  0: () => `No answer from ${location.host}. Check that the service is running and that this machine is online.`,
  413: () => "This is too much for one request.",
  429: () => "Too many requests for now.",
  500: () => "The service failed on this request.",
  502: () => "The service is not reachable through its proxy.",
  503: () => "The service is busy or still starting.",
  504: () => "The request took too long.",
};

let countdown = null;

export function clearErrors() {
  for (const name of [...FIELDS, "key", "general"]) $(`${name}-error`).textContent = "";
  for (const name of [...FIELDS, "key"]) $(name)?.removeAttribute("aria-invalid");
  $("failure").hidden = true;
  clearInterval(countdown);
}

/** The error in plain words, followed by the service's own message. */
export function wordsOf(refusal, message = refusal.message) {
  const headline = HEADLINES[refusal.status]?.() ?? "";
  if (headline || message) return [headline, message].filter(Boolean).join("\n");
  return `The service answered with status ${refusal.status} and no explanation.`;
}

/** Shows each problem at its field. Returns the names of the fields, `general` for problems of the whole request. */
export function showRefusal(refusal, prefix = "") {
  const words = new Map();
  for (const { loc, msg } of refusal.problems) {
    const place = refusal.status === 401 ? "key" : placeOf(loc);
    words.set(place, [...(words.get(place) ?? []), msg]);
  }
  for (const [place, messages] of words) {
    const text = messages.filter(Boolean).join("\n");
    $(`${place}-error`).textContent = place === "general" ? prefix + wordsOf(refusal, text) : text;
    $(place)?.setAttribute("aria-invalid", "true");
  }
  if (words.has("general")) {
    $("failure").hidden = false;
    offerRetry(refusal);
    $("failure").scrollIntoView({ block: "nearest" });
  }
  return [...words.keys()];
}

function placeOf(loc) {
  if (loc[0] !== "body") return "general";
  return PLACES[loc[1]] ?? FIELDS.find((name) => loc[1] === name) ?? "general";
}

/** Enables the button "Try again" once the time that the service asked for has passed. */
function offerRetry({ status, retryAfterS }) {
  const retry = $("retry");
  retry.hidden = !(status === 0 || status === 429 || status >= 500);
  const ready = performance.now() + 1000 * (retryAfterS ?? 0);
  const tick = () => {
    const left = Math.ceil((ready - performance.now()) / 1000);
    retry.disabled = left > 0;
    retry.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left <= 0) clearInterval(countdown);
  };
  tick();
  if (retry.disabled) countdown = setInterval(tick, 250);
}
