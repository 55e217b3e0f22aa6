// The form for the API key. The key stays in this tab's session storage.
import { $ } from "./dom.js";
import { clearErrors, showRefusal } from "./errors.js";
import { key, Refusal } from "./service.js";

export const keyIsRequired = () => !$("key-form").hidden;

export function askForKey() {
  key.forget();
  $("key-form").hidden = $("key-entry").hidden = false;
  $("key-held").hidden = true;
}

export function showKeyHeld() {
  $("key").value = "";
  $("key-form").hidden = $("key-held").hidden = false;
  $("key-entry").hidden = true;
}

/** `onKey()` is called with a new key in store. */
export function startKeyForm(onKey) {
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    clearErrors();
    const value = $("key").value.trim();
    if (!/^[\x21-\x7e]+$/.test(value)) {
      showRefusal(new Refusal(401, { message: "A key consists of letters, digits and symbols, without spaces." }));
      $("key").focus();
      return;
    }
    key.set(value);
    onKey();
  });
  $("key-forget").addEventListener("click", () => {
    askForKey();
    $("key").focus();
  });
  if (key.get() !== null) showKeyHeld();
}
