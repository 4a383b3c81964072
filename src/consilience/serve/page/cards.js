// One sample as something to look at: in the grid of results, in the dialog, in the review.

import { $, ask, h, icon, iconOf, isPicture, isShape, labelColour, show } from "./dom.js";
import { View, shape } from "./view3d.js";

let facets = null;
let actions = { like: () => {}, add: () => {} };

export function setUp(found, given) {
  facets = found;
  actions = given;
}

export const kindOf = (modality) => facets.modalities[modality]?.kind ?? "";

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    entry.target.dispatchEvent(new Event("seen"));
  }
}, { rootMargin: "200px" });

// options: text (of a caption, where known), large, spin, zoom, label
export function sample(index, modality, { text, large = false, spin = false, zoom = false, label = "" } = {}) {
  const kind = kindOf(modality);
  const named = `${modality} of ${label || `row ${index}`}`;
  const box = h("div", { class: `sample ${large ? "large" : ""}` });
  const missing = (reason) => {
    box.classList.add("missing");
    box.replaceChildren(icon(iconOf(kind)), h("span", {}, reason));
  };
  if (isShape(kind)) {
    const canvas = h("canvas", {});
    const view = new View(canvas, { label: named, spin, zoom });
    box.append(canvas);
    box.view = view;
    canvas.addEventListener("seen", () =>
      shape(`/api/geometry/${index}/${modality}`).then((found) => view.set(found)).catch((error) => missing(error.message)));
    seen.observe(canvas);
  } else if (kind === "text") {
    const words = h("blockquote", {}, text ?? "");
    box.append(words);
    if (text === undefined) {
      ask(`/api/items/${index}/${modality}/text`)
        .then((found) => { words.textContent = found.text ?? "(no words)"; })
        .catch((error) => missing(error.message));
    }
  } else {
    const image = h("img", { alt: named, loading: "lazy", decoding: "async", draggable: false });
    image.draggable = false;
    image.addEventListener("error", () => missing("No picture"));
    const path = `/api/items/${index}/${modality}`;
    show(image, isPicture(kind) && large ? path : `${path}/thumbnail`);
    box.append(image);
  }
  return box;
}

export function labelChip(label) {
  if (label === null || label === undefined) return null;
  const dot = h("i", { class: "dot", "aria-hidden": "true" });
  dot.style.background = labelColour(label);
  return h("span", { class: "label", title: label }, dot, h("span", {}, label));
}

// A result: { index, id, modality, label, split, score?, text? }
export function card(hit, order = 0) {
  const look = sample(hit.index, hit.modality, { text: hit.text, label: hit.id });
  const open = () => detail(hit.index, hit.modality);
  look.classList.add("look");
  look.addEventListener("click", open);
  const score = hit.score === undefined ? null : h("span", { class: "score", title: "Cosine similarity" }, hit.score.toFixed(3));
  const bar = h("span", { class: "bar", "aria-hidden": "true" }, h("i", {}));
  bar.firstChild.style.width = `${Math.max(0, Math.min(1, hit.score ?? 0)) * 100}%`;
  const box = h("article", { class: "card", "data-index": String(hit.index), "data-modality": hit.modality },
    look,
    h("div", { class: "card-foot" },
      h("button", { type: "button", class: "card-name", onclick: open, "aria-label": `Details of ${hit.id}` },
        icon(iconOf(kindOf(hit.modality))), labelChip(hit.label) ?? h("span", { class: "label" }, h("span", {}, hit.id))),
      score),
    hit.score === undefined ? null : bar,
    h("div", { class: "card-actions" },
      h("button", { type: "button", class: "like", onclick: () => actions.like(hit.index, hit.modality), title: `More like ${hit.id}` },
        icon("like"), "More like this")));
  if (look.view) {
    box.addEventListener("mouseenter", () => look.view.spin());
    box.addEventListener("mouseleave", () => look.view.stop());
  }
  box.style.setProperty("--order", Math.min(order, 12));
  return box;
}

export async function detail(index, modality) {
  const dialog = $("detail");
  const close = () => dialog.close();
  const head = h("header", { class: "detail-head" }, h("h2", {}, "…"),
    h("button", { type: "button", class: "plain", onclick: close, "aria-label": "Close" }, icon("close")));
  const body = h("div", { class: "detail-body" });
  dialog.replaceChildren(head, body);
  dialog.onclick = (event) => { if (event.target === dialog) close(); };
  if (!dialog.open) dialog.showModal();
  let row;
  try {
    row = await ask(`/api/items/${index}`);
  } catch (error) {
    body.replaceChildren(h("p", { class: "empty" }, error.message));
    return;
  }
  head.firstChild.replaceChildren(row.id, " ", labelChip(row.label) ?? "");
  const names = Object.keys(row.modalities).sort((a, b) => (b === modality) - (a === modality));
  const parts = names.map((name, place) => {
    const searchable = facets.modalities[name].searchable;
    return h("figure", {},
      sample(index, name, { large: true, spin: place === 0, zoom: true, label: row.id }),
      h("figcaption", {}, icon(iconOf(kindOf(name))), h("strong", {}, name),
        h("span", { class: "spring" }),
        searchable ? h("button", { type: "button", onclick: () => { close(); actions.like(index, name); } }, icon("like"), "More like this") : null,
        searchable ? h("button", { type: "button", title: "Add to the queries", "aria-label": `Add the ${name} to the queries`, onclick: () => { close(); actions.add(index, name); } }, icon("plus")) : null,
        h("a", { class: "button", href: `/api/items/${index}/${name}`, download: "", title: "Download", "aria-label": `Download the ${name}` }, icon("down"))));
  });
  const facts = { Split: row.split, Row: row.index, ...Object.fromEntries(names.map((name) => [`Origin of ${name}`, row.modalities[name].origin])) };
  const list = h("dl", {}, Object.entries(facts).filter(([, value]) => value !== null && value !== "").map(([name, value]) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, String(value)))));
  const columns = Object.entries(row.columns);
  const more = columns.length
    ? h("details", {}, h("summary", {}, "Columns"), h("dl", {}, columns.map(([name, value]) =>
        h("div", {}, h("dt", {}, name), h("dd", {}, typeof value === "number" && !Number.isInteger(value) ? value.toPrecision(4) : String(value))))))
    : null;
  body.replaceChildren(h("div", { class: "figures" }, parts), list, more ?? "");
}
