// The dialog with the request as code, including the cut at the threshold.
import { $, announce, choice } from "./dom.js";
import { curlCode, pythonCode } from "./code.js";

const WRITERS = { curl: curlCode, python: pythonCode };

/** `currentRequest()` returns the request that `curlCode` and `pythonCode` take. */
export function startCodeBox(currentRequest) {
  const show = () => ($("snippet").textContent = WRITERS[choice("language")](currentRequest()));
  const open = () => {
    show();
    $("code").showModal();
  };
  for (const id of ["show-code", "code-of-cut"]) $(id).addEventListener("click", open);
  for (const input of document.querySelectorAll('input[name="language"]')) input.addEventListener("change", show);
  $("close-code").addEventListener("click", () => $("code").close());
  $("code").addEventListener("pointerdown", closeOutside);
  $("copy").addEventListener("click", copy);
}

/** Closes the dialog if the visitor presses beside it, on the backdrop. */
function closeOutside({ clientX, clientY }) {
  const { left, right, top, bottom } = $("code").getBoundingClientRect();
  if (clientX < left || clientX > right || clientY < top || clientY > bottom) $("code").close();
}

async function copy() {
  const words = (await copied($("snippet").textContent)) ? "Copied" : "Selected";
  if (words === "Selected") getSelection().selectAllChildren($("snippet"));
  $("copy").textContent = words;
  announce(words);
  setTimeout(() => ($("copy").textContent = "Copy"), 1600);
}

/** Copies a text if the browser permits it: over plain http, browsers allow copying on localhost only. */
export async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}
