// The request in the form: query, passages, models, and what happens to long passages.
import { $, choice, choose, counted } from "./dom.js";
import { EXAMPLE } from "./example.js";
import { parseFile } from "./files.js";
import { chosenModels } from "./models.js";
import { joinPassages, separatorFor, splitPassages } from "./passages.js";

/** Parts of a passage that are scored, if long passages count by their best part. */
const MAX_WINDOWS = 8;
const MAX_FILE_BYTES = 32 * 1024 * 1024;

const [query, passages, fitting] = ["query", "passages", "fitting"].map($);

export const passagesInForm = () => splitPassages(passages.value, choice("separator"));

export function stateOfForm() {
  return { query: query.value, passages: passagesInForm(), models: chosenModels(), fitting: fitting.value };
}

/** Fills in the parts that `state` has. */
export function fillForm(state) {
  if (typeof state.query === "string") query.value = state.query;
  if (Array.isArray(state.passages)) {
    const separator = separatorFor(state.passages, choice("separator"));
    choose("separator", separator);
    passages.value = joinPassages(state.passages, separator);
  }
  if ([...fitting.options].some(({ value }) => value === state.fitting)) fitting.value = state.fitting;
}

/** One request body per chosen model. Without a list of models, the service's default model answers. */
export function requestBodies() {
  const { query: text, passages: texts, models, fitting: how } = stateOfForm();
  return (models.length ? models : [null]).map((model) => ({
    ...(model && { model }),
    query: { text },
    passages: texts.map((text) => ({ text })),
    truncate: how === "NONE" ? "NONE" : "END",
    ...(how === "WINDOWS" && { passage_windows: { max_per_passage: MAX_WINDOWS } }),
  }));
}

export function showCount() {
  $("count").textContent = counted(passagesInForm().length, "passage");
  $("clear").textContent = query.value || passages.value ? "Clear" : "Fill in the example";
}

export function clearOrFillIn() {
  fillForm(query.value || passages.value ? { query: "", passages: [] } : EXAMPLE);
}

/** Opens files chosen or dropped anywhere on the page. `onOpened(words)` is called after the form has been filled. */
export function startFiles(onOpened) {
  $("open-file").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    openFile($("file").files[0], onOpened);
    $("file").value = ""; // the same file can be chosen again
  });
  const hasFiles = ({ dataTransfer }) => dataTransfer?.types.includes("Files");
  const mark = (isOver) => $("drop").classList.toggle("over", isOver);
  addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    mark(true);
  });
  addEventListener("dragleave", ({ relatedTarget }) => relatedTarget === null && mark(false));
  addEventListener("drop", (event) => {
    mark(false);
    if (!hasFiles(event)) return;
    event.preventDefault();
    openFile(event.dataTransfer.files[0], onOpened);
  });
}

async function openFile(file, onOpened) {
  if (!file) return;
  $("passages-error").textContent = "";
  try {
    if (file.size > MAX_FILE_BYTES) throw new Error("The file is larger than 32 MB.");
    const parsed = parseFile(file.name, await file.text());
    fillForm({ passages: parsed.passages, ...(parsed.query !== null && { query: parsed.query }) });
    onOpened(`${counted(parsed.passages.length, "passage")} from ${file.name}`);
  } catch (error) {
    $("passages-error").textContent = error.message;
    passages.focus();
  }
}
