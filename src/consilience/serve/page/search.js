// The search: queries as chips that can be combined and removed, filters, results.

import { $, Failure, ask, call, h, icon, iconOf, isPicture, isShape, plural, query, say } from "./dom.js";
import { card, kindOf, labelChip, sample } from "./cards.js";
import { Sketch } from "./sketch.js";
import { View, unpack } from "./view3d.js";

const SHAPES = /\.(ply|off|obj|stl|glb|npy|npz)$/i;
const STEP = 24; // results at first, and more each time; of each modality half as many

export class Search {
  constructor(facets) {
    this.facets = facets;
    this.queries = [];
    this.filters = { into: new Set(), split: new Set(), label: new Set() };
    this.by = "vector";
    this.k = STEP;
    this.next = 1;
    this.flight = null;
    this.kinds = facets.queries;
    this.setUpTabs();
    this.setUpFiles();
    this.setUpText();
    this.setUpFilters();
    $("more").addEventListener("click", () => { this.k = Math.min(this.k + STEP, facets.limits.k); this.run(); });
    const picture = Object.keys(this.kinds).find((name) => isPicture(this.kinds[name]));
    if (picture) {
      this.sketch = new Sketch(() => this.drawn(picture));
      if (facets.modalities[picture]) this.sketch.matchPaper(picture);
    }
    this.run();
  }

  // panels

  setUpTabs() {
    const kinds = Object.values(this.kinds);
    const tabs = [["file", "Upload", kinds.some((kind) => kind !== "text")], ["draw", "Draw", kinds.some(isPicture)],
      ["text", "Text", kinds.includes("text")]].filter(([, , there]) => there);
    const choose = (name, focus) => {
      for (const [other] of tabs) {
        $(`panel-${other}`).hidden = other !== name;
        const tab = $(`tab-${other}`);
        tab.setAttribute("aria-selected", String(other === name));
        tab.tabIndex = other === name ? 0 : -1;
        if (other === name && focus) tab.focus();
      }
    };
    for (const name of ["file", "draw", "text"]) $(`panel-${name}`).hidden = true;
    $("tabs").replaceChildren(...tabs.map(([name, title], place) => h("button", {
      type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}`, onclick: () => choose(name),
      onkeydown: (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (step) choose(tabs[(place + step + tabs.length) % tabs.length][0], true);
      },
    }, title)));
    if (tabs.length) choose(tabs[0][0]);
  }

  setUpFiles() {
    const kinds = Object.values(this.kinds);
    const words = [];
    if (kinds.some(isPicture)) words.push("PNG, JPEG, WebP, GIF");
    if (kinds.some(isShape)) words.push("PLY, OFF, OBJ, STL, GLB, NPY");
    $("drop-note").textContent = words.join(" · ");
    const chosen = () => {
      this.addFiles([...$("file").files]);
      $("file").value = "";
    };
    $("file").addEventListener("change", chosen);
    if ($("file").files.length) chosen(); // somebody was faster than the page
    let depth = 0;
    addEventListener("dragenter", (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      depth++;
      document.body.classList.add("dropping");
    });
    addEventListener("dragleave", () => { if (--depth <= 0) { depth = 0; document.body.classList.remove("dropping"); } });
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault();
      depth = 0;
      document.body.classList.remove("dropping");
      const files = [...(event.dataTransfer?.files ?? [])];
      if (!files.length) return;
      location.hash = "#search";
      this.addFiles(files);
    });
    addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (files.length && !$("view-search").hidden) this.addFiles(files);
    });
  }

  addFiles(files) {
    for (const file of files) {
      if (file.size > this.facets.limits.upload_bytes) {
        say(`${file.name} is larger than ${Math.round(this.facets.limits.upload_bytes / 2 ** 20)} MB, the most this server takes.`);
        continue;
      }
      const isGeometry = SHAPES.test(file.name);
      const fitting = Object.keys(this.kinds).filter((name) => {
        const kind = this.kinds[name];
        if (!isGeometry) return isPicture(kind);
        return /\.np[yz]$/i.test(file.name) ? !isPicture(kind) && kind !== "text" : isShape(kind);
      });
      if (!fitting.length) {
        say(`${file.name}: this Table's run knows ${Object.keys(this.kinds).join(", ")}, and this file is none of them.`);
        continue;
      }
      this.put({ kind: "file", file, name: file.name, isGeometry, modality: fitting[0], fitting });
    }
  }

  setUpText() {
    const send = () => {
      const words = $("text").value.trim();
      this.queries = this.queries.filter((entry) => entry.kind !== "text");
      if (words) this.queries.push({ key: this.next++, kind: "text", words });
      this.changed();
    };
    $("text").maxLength = this.facets.limits.characters;
    $("words").addEventListener("submit", (event) => { event.preventDefault(); send(); });
    $("text").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); send(); }
    });
  }

  async drawn(modality) {
    const blob = await this.sketch.picture();
    this.queries = this.queries.filter((entry) => entry.kind !== "draw");
    if (blob) this.queries.push({ key: this.next++, kind: "draw", file: blob, name: "Drawing", modality, fitting: [modality] });
    this.changed();
  }

  put(entry) {
    this.queries.push({ key: this.next++, ...entry });
    this.changed();
  }

  like(index, modality) {
    this.queries = [{ key: this.next++, kind: "like", index, modality }];
    this.sketch?.wipe();
    $("text").value = "";
    this.changed();
    scrollTo({ top: 0 });
  }

  add(index, modality) {
    this.put({ kind: "like", index, modality });
  }

  remove(entry) {
    this.queries = this.queries.filter((other) => other !== entry);
    if (entry.kind === "draw") this.sketch.wipe();
    if (entry.kind === "text") $("text").value = "";
    this.changed();
  }

  changed() {
    this.k = STEP;
    $("chips").replaceChildren(...this.queries.map((entry) => this.chip(entry)));
    this.run();
  }

  chip(entry) {
    const name = entry.kind === "text" ? entry.words : entry.kind === "like" ? `Row ${entry.index}` : entry.name;
    const look = h("div", { class: "chip-look" });
    if (entry.kind === "text") look.append(icon("text"));
    else if (entry.kind === "like") look.append(sample(entry.index, entry.modality));
    else if (entry.isGeometry) this.preview(entry, look);
    else {
      entry.url ??= URL.createObjectURL(entry.file);
      const image = h("img", { alt: "" });
      image.src = entry.url;
      look.append(image);
    }
    const kind = entry.kind === "text" ? "Text" : entry.modality;
    const choice = entry.fitting?.length > 1
      ? h("select", { "aria-label": "Modality of the file", onchange: (event) => { entry.modality = event.target.value; this.changed(); } },
          entry.fitting.map((one) => h("option", { value: one, selected: one === entry.modality }, one)))
      : h("span", { class: "quiet" }, kind);
    return h("div", { class: "chip", role: "listitem" }, look, h("div", { class: "chip-text" }, h("span", { class: "chip-name", title: name }, name), choice),
      h("button", { type: "button", class: "plain", "aria-label": `Remove ${name}`, onclick: () => this.remove(entry) }, icon("close")));
  }

  preview(entry, look) {
    const canvas = h("canvas", {});
    look.append(canvas);
    const view = new View(canvas, { label: entry.name });
    entry.shape ??= (async () => {
      const form = new FormData();
      form.append("file", new File([entry.file], entry.name, { type: "application/octet-stream" }));
      return unpack(await (await call("/api/geometry", { method: "POST", body: form })).arrayBuffer());
    })();
    entry.shape.then((found) => view.set(found)).catch(() => look.replaceChildren(icon("shape")));
  }

  // filters

  setUpFilters() {
    const { modalities, split, label } = this.facets;
    const searchable = Object.keys(modalities).filter((name) => modalities[name].searchable);
    const groups = [];
    if (searchable.length > 1) groups.push(this.group("Look in", "into", searchable.map((name) => [name, null, icon(iconOf(kindOf(name)))])));
    if (Object.keys(split).length > 1) groups.push(this.group("Split", "split", Object.entries(split)));
    const labels = Object.entries(label);
    if (labels.length > 1) {
      groups.push(labels.length <= 16 ? this.group("Label", "label", labels) : this.labelPicker(labels));
    }
    if (this.facets.by.length > 1) {
      const choose = (by) => { this.by = by; this.filtered(); };
      const select = h("select", { "aria-label": "Compare by", onchange: (event) => choose(event.target.value) },
        h("option", { value: "vector" }, "Vectors (exact)"), h("option", { value: "code" }, "Binary codes"));
      groups.push(h("fieldset", {}, h("legend", {}, "Compare"), select));
    }
    $("filter-groups").replaceChildren(...groups);
    $("filters").hidden = !groups.length;
    if (matchMedia("(max-width: 800px)").matches) $("filters").open = false;
  }

  group(title, name, entries) {
    const pills = entries.map(([value, count, mark]) => h("button", {
      type: "button", class: "pill", "aria-pressed": "false", "data-filter": name, "data-value": value,
      onclick: (event) => this.toggle(name, value, event.currentTarget),
    }, name === "label" ? labelChip(value) : [mark ?? "", value], count === null ? "" : h("small", {}, count.toLocaleString("en"))));
    return h("fieldset", {}, h("legend", {}, title), h("div", { class: "pills" }, pills));
  }

  labelPicker(labels) {
    const chosen = h("div", { class: "pills" });
    const list = h("datalist", { id: "labels" }, labels.map(([value]) => h("option", { value })));
    const input = h("input", { type: "search", list: "labels", placeholder: `Add one of ${labels.length} labels`, "aria-label": "Add a label" });
    const redraw = () => {
      chosen.replaceChildren(...[...this.filters.label].map((value) => h("button", {
        type: "button", class: "pill", "aria-pressed": "true", "aria-label": `Remove ${value}`,
        onclick: () => { this.filters.label.delete(value); redraw(); this.filtered(); },
      }, labelChip(value), icon("close"))));
    };
    const known = new Set(labels.map(([value]) => value));
    input.addEventListener("input", () => {
      if (!known.has(input.value)) return;
      this.filters.label.add(input.value);
      input.value = "";
      redraw();
      this.filtered();
    });
    return h("fieldset", {}, h("legend", {}, "Label"), input, list, chosen);
  }

  toggle(name, value, button) {
    const chosen = this.filters[name];
    if (chosen.has(value)) chosen.delete(value);
    else chosen.add(value);
    button.setAttribute("aria-pressed", String(chosen.has(value)));
    this.filtered();
  }

  filtered() {
    this.k = STEP;
    this.run();
  }

  // asking

  targets() {
    const { modalities } = this.facets;
    const usable = this.by === "code" ? "coded" : "searchable";
    return Object.keys(modalities).filter((name) => modalities[name][usable] && (!this.filters.into.size || this.filters.into.has(name)));
  }

  each() {
    return this.targets().length > 1;
  }

  form() {
    const form = new FormData();
    for (const entry of this.queries) {
      if (entry.kind === "text") form.append("text", entry.words);
      else if (entry.kind === "like") form.append("like", `${entry.index}:${entry.modality}`);
      else {
        // the bytes say what a picture is; a name is sent only where it tells formats apart that bytes cannot
        const name = entry.isGeometry ? entry.name : "picture";
        form.append("file", new File([entry.file], name, { type: "application/octet-stream" }));
        form.append("modality", entry.modality);
      }
    }
    for (const [name, chosen] of Object.entries(this.filters)) for (const value of chosen) form.append(name, value);
    form.append("k", String(this.each() ? Math.ceil(this.k / 2) : this.k));
    form.append("each", String(this.each()));
    form.append("by", this.by);
    return form;
  }

  async run() {
    this.flight?.abort();
    const flight = (this.flight = new AbortController());
    const box = $("groups");
    const slow = setTimeout(() => box.classList.add("waiting"), 150);
    try {
      const hits = this.queries.length ? await this.find(flight.signal) : await this.browse(flight.signal);
      if (flight.signal.aborted) return;
      this.showHits(hits);
    } catch (error) {
      if (error.name === "AbortError" || flight.signal.aborted) return;
      $("found-title").textContent = error instanceof Failure && error.status < 500 && error.status ? "That could not be searched" : "Something went wrong";
      $("status").textContent = "";
      $("more").hidden = true;
      box.replaceChildren(h("p", { class: "empty wrong", role: "alert" }, error.message));
      if (!(error instanceof Failure)) throw error;
    } finally {
      clearTimeout(slow);
      if (this.flight === flight) box.classList.remove("waiting");
    }
  }

  async find(signal) {
    const found = await ask("/api/search", { method: "POST", body: this.form(), signal });
    const took = Math.round(found.milliseconds.encode + found.milliseconds.search);
    $("found-title").textContent = found.hits.length ? "Most alike" : "Nothing found";
    $("status").textContent = found.hits.length
      ? `${plural(found.hits.length, "result")} in ${took} ms, by ${found.by === "code" ? "binary codes" : "cosine similarity"}` : "";
    const full = this.targets().length * (this.each() ? Math.ceil(this.k / 2) : this.k);
    $("more").hidden = found.hits.length < full || this.k >= this.facets.limits.k;
    return found.hits;
  }

  async browse(signal) {
    const { split, label } = this.filters;
    const wanted = this.targets();
    const found = await ask(`/api/items?${query({ k: this.k, split: [...split], label: [...label] })}`, { signal });
    $("found-title").textContent = found.items.length ? "Start anywhere" : "Nothing found";
    $("status").textContent = found.items.length ? "Some of the Table, evenly chosen. Ask for more like one of them, or bring your own." : "";
    $("more").hidden = true;
    return found.items
      .map((item, place) => {
        const there = wanted.filter((name) => item.modalities.includes(name));
        return there.length ? { ...item, modality: there[place % there.length] } : null;
      })
      .filter(Boolean);
  }

  // Several modalities have a heading each; those that were not asked with come first.
  showHits(hits) {
    const box = $("groups");
    if (!hits.length) {
      box.replaceChildren(h("p", { class: "empty" }, "No row passes these filters. Take one of them away."));
      return;
    }
    const grid = (some) => h("div", { class: "grid" }, some.map(card));
    if (!this.queries.length || !this.each()) {
      box.replaceChildren(grid(hits));
      return;
    }
    const asked = new Set(this.queries.map((entry) => entry.modality ?? "text"));
    const names = [...new Set(hits.map((hit) => hit.modality))].sort((a, b) => asked.has(a) - asked.has(b));
    box.replaceChildren(...names.map((name) => h("section", { class: "group", "aria-label": name },
      h("h2", {}, icon(iconOf(kindOf(name))), name), grid(hits.filter((hit) => hit.modality === name)))));
  }
}
