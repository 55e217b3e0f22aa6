// The choice of one model, or of two to compare. Names wrap and are never cut.
import { $, button, choice, element } from "./dom.js";

let served = [];

/** Ids of the chosen models: one, or two that differ. Empty until the service has listed its models. */
export function chosenModels() {
  return ["model", "rival"].map(choice).filter(Boolean);
}

/** Offers the served models and chooses `wanted`, as far as they exist. */
export function offerModels(models, wanted = []) {
  served = models;
  const known = wanted.map(nameOf).filter(Boolean);
  const [first = models[0]?.name, second] = [...new Set(known)];
  draw(first, second);
}

/** The name of the model that is served under `name`, which may be an alias. */
const nameOf = (name) => served.find((model) => model.name === name || model.aliases.includes(name))?.name;

function draw(first, second) {
  const field = $("models");
  if (served.length < 2) {
    field.replaceChildren(element("p", "label", "Model"), ...served.map((model) => only(model)));
    return;
  }
  const choices = [group("model", second ? "Models" : "Model", served, first)];
  if (second)
    choices.push(
      group(
        "rival",
        "Compared with",
        served.filter(({ name }) => name !== first),
        second,
      ),
    );
  const words = second ? "Use one model" : "Compare two models";
  const toggle = button("link", words, () => {
    draw(first, second ? undefined : served.find(({ name }) => name !== first).name);
    field.querySelector("button").focus();
    field.dispatchEvent(new Event("input", { bubbles: true }));
  });
  field.replaceChildren(...choices, toggle);
}

/** The only model needs no choice, but it takes part in the form like a chosen one. */
function only(model) {
  const input = element("input");
  Object.assign(input, { type: "radio", name: "model", value: model.name, checked: true, hidden: true });
  return element("p", "model-name", input, ...label(model));
}

function group(name, legend, models, chosen) {
  const rows = models.map((model) => {
    const input = element("input");
    Object.assign(input, { type: "radio", name, value: model.name, checked: model.name === chosen });
    input.addEventListener("change", () => onChange(name));
    return element("label", "", input, element("span", "model-name", ...label(model)));
  });
  return element("fieldset", "choices", element("legend", "", legend), element("div", "", ...rows));
}

/** Redraws, because the rival's list leaves out the first model. The focus stays on the pressed radio button. */
function onChange(group) {
  const [first, second] = chosenModels();
  const others = served.filter(({ name }) => name !== first);
  const rival = second === undefined ? undefined : second === first ? others[0].name : second;
  const focused = group === "model" ? first : rival;
  draw(first, rival);
  document.querySelector(`#models input[name="${group}"][value="${CSS.escape(focused)}"]`)?.focus();
  $("models").dispatchEvent(new Event("input", { bubbles: true }));
}

const label = ({ name, aliases, stages }) => [
  name,
  ...aliases.map((alias) => element("span", "quiet alias", ` also ${alias}`)),
  ...(stages.length ? [element("span", "quiet alias", ` ranks in stages: ${stages.join(", ")}`)] : []),
];
