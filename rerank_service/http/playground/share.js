// The form's content as text for the address's fragment, which browsers never send, and back.

const MAX_BYTES = 2 * 1024 * 1024; // after decompression
const DEFLATED = "1z."; // version, then the encoding
const PLAIN = "1j.";
const BASE64URL = /^[A-Za-z0-9_-]+$/;

/**
 * Encodes the form's content for `location.hash`, compressed if the browser can. Only `decodeState` can read it.
 *
 * @param {object} state  see `isState`; other fields are kept
 * @returns {Promise<string>} letters, digits, `.`, `-` and `_`
 * @throws {Error} if the content is too large for a link
 */
export async function encodeState(state) {
  const bytes = new TextEncoder().encode(JSON.stringify(state));
  if (bytes.length > MAX_BYTES) throw new Error("A link holds at most 2 MB. Shorten or remove passages, then share again.");
  if (!globalThis.CompressionStream) return PLAIN + textOf(bytes);
  return DEFLATED + textOf(await through(bytes, new CompressionStream("deflate"), Infinity));
}

/**
 * The content that `encodeState` encoded, or null if the text is anything else: damaged, too large, or not of this page.
 *
 * @param {string} hash  with or without `#`
 * @returns {Promise<object | null>}
 */
export async function decodeState(hash) {
  try {
    const text = hash.replace(/^#/, "");
    const [version, content] = [text.slice(0, DEFLATED.length), text.slice(DEFLATED.length)];
    if (![DEFLATED, PLAIN].includes(version) || !BASE64URL.test(content)) return null;
    const bytes = bytesOf(content);
    // The checksum of "deflate" detects damaged links.
    const whole = version === PLAIN ? bytes : await through(bytes, new DecompressionStream("deflate"), MAX_BYTES);
    if (whole.length > MAX_BYTES) return null;
    const state = JSON.parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(whole));
    return isState(state) ? state : null;
  } catch {
    return null;
  }
}

/** Sends the bytes through a (de)compressor. Throws as soon as the output exceeds the limit, and for invalid input. */
async function through(bytes, transform, maxBytes) {
  const chunks = [];
  let size = 0;
  const reader = new Blob([bytes]).stream().pipeThrough(transform).getReader();
  for (let step = await reader.read(); !step.done; step = await reader.read()) {
    chunks.push(step.value);
    size += step.value.length;
    if (size > maxBytes) {
      await reader.cancel();
      throw new Error(`The content exceeds ${maxBytes} bytes.`);
    }
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

/** Whether the fields that the page reads, if present, have their types. */
function isState(state) {
  const isObject = typeof state === "object" && state !== null && !Array.isArray(state);
  return isObject && Object.entries(FIELDS).every(([name, fits]) => state[name] === undefined || fits(state[name]));
}

const isText = (value) => typeof value === "string";
const areTexts = (value) => Array.isArray(value) && value.every(isText);
const FIELDS = {
  query: isText,
  passages: areTexts,
  models: areTexts,
  fitting: isText,
  before: isText,
  threshold: (value) => value === null || Number.isFinite(value),
};

function textOf(bytes) {
  const parts = [];
  const step = 0x8000; // a function takes a limited number of arguments
  for (let at = 0; at < bytes.length; at += step) parts.push(String.fromCharCode(...bytes.subarray(at, at + step)));
  return btoa(parts.join("")).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function bytesOf(text) {
  const characters = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  return Uint8Array.from(characters, (character) => character.charCodeAt(0));
}
