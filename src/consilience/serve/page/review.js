// The review of suspicious pairs, by keyboard: k keep, d drop, r re-pair, u undo, arrows to move.

import { $, ask, h, icon, iconOf, plural, query, say, tell } from "./dom.js";
import { kindOf, labelChip, sample } from "./cards.js";

const PAGE = 200;
const WORDS = { keep: "Kept", drop: "Dropped", "re-pair": "Re-paired" };

export class Review {
  constructor(facets) {
    this.facets = facets;
    this.suspects = [];
    this.counts = facets.review;
    this.at = 0;
    this.busy = false;
    this.rows = new Map();
    addEventListener("keydown", (event) => this.key(event));
    this.count();
  }

  count() {
    const badge = $("review-count");
    badge.textContent = this.counts.open.toLocaleString("en");
    badge.hidden = !this.counts.open;
    badge.setAttribute("aria-label", `${this.counts.open} undecided`);
  }

  async open() {
    try {
      await this.load(0);
    } catch (error) {
      $("review").replaceChildren(h("p", { class: "empty wrong", role: "alert" }, error.message));
      return;
    }
    const first = this.suspects.findIndex((suspect) => !suspect.decision);
    if (!this.suspects[this.at] || this.suspects[this.at].decision) this.at = Math.max(0, first);
    this.show();
  }

  async load(offset) {
    const found = await ask(`/api/review?${query({ limit: PAGE, offset })}`);
    this.suspects.splice(offset, Infinity, ...found.suspects);
    this.counts = found.counts;
    this.count();
  }

  key(event) {
    if ($("view-review").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, textarea, select, dialog")) return;
    const act = {
      k: () => this.decide("keep"), d: () => this.decide("drop"), r: () => this.decide("re-pair"), u: () => this.undo(),
      ArrowRight: () => this.step(1), ArrowLeft: () => this.step(-1),
    }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act || (event.target.matches("canvas") && event.key.startsWith("Arrow"))) return;
    event.preventDefault();
    act();
  }

  async step(by) {
    const next = this.at + by;
    if (next >= this.suspects.length && this.suspects.length < this.counts.suspects) await this.load(this.suspects.length);
    if (next < 0 || next >= this.suspects.length) return;
    this.at = next;
    this.show();
  }

  async decide(decision) {
    const suspect = this.suspects[this.at];
    if (!suspect || this.busy) return;
    if (decision === "re-pair" && suspect.better === null) {
      say("The audit proposes no better partner for this pair. Keep it or drop it.");
      return;
    }
    await this.send("/api/review", { index: suspect.index, decision, ...(decision === "re-pair" ? { partner: suspect.better } : {}) }, (answer) => {
      suspect.decision = decision;
      this.counts = answer.counts;
      const later = this.suspects.findIndex((other, place) => place > this.at && !other.decision);
      const earlier = this.suspects.findIndex((other) => !other.decision);
      if (later >= 0) this.at = later;
      else if (this.suspects.length < this.counts.suspects) return this.step(1);
      else if (earlier >= 0) this.at = earlier;
      return null;
    });
  }

  async undo() {
    await this.send("/api/review/undo", {}, (answer) => {
      this.counts = answer.counts;
      if (!answer.suspect) {
        say("There is nothing to undo.");
        return;
      }
      const place = this.suspects.findIndex((suspect) => suspect.index === answer.suspect.index);
      if (place < 0) return;
      this.suspects[place] = answer.suspect;
      this.at = place;
    });
  }

  async send(path, content, then) {
    if (this.busy) return;
    this.busy = true;
    try {
      await then(await tell(path, content));
      this.count();
      this.show();
    } catch (error) {
      say(error.message);
    } finally {
      this.busy = false;
    }
  }

  row(index) {
    if (!this.rows.has(index)) {
      const loading = ask(`/api/items/${index}`);
      loading.catch(() => this.rows.delete(index));
      this.rows.set(index, loading);
    }
    return this.rows.get(index);
  }

  async show() {
    const suspect = this.suspects[this.at];
    const { counts } = this;
    const done = counts.suspects - counts.open;
    if (!suspect) {
      $("review").replaceChildren(h("div", { class: "empty" },
        h("h1", {}, "Nothing to review"),
        h("p", {}, "No pair of this Table is under suspicion yet. Let the audit look for pairs that do not belong together:"),
        h("code", {}, "consilience audit TABLE --train")));
      return;
    }
    const mark = this.at;
    let row, better;
    try {
      row = await this.row(suspect.index);
      better = suspect.better === null ? null : await this.row(suspect.better);
    } catch (error) {
      say(error.message);
      return;
    }
    if (mark !== this.at) return;
    const names = Object.keys(this.facets.modalities).slice(0, 2);
    // a label goes with the first modality: what the others of a doubted pair show is the question
    const part = (index, name, title, found, labelled, extra = "") => h("figure", { class: extra },
      name in found.modalities ? sample(index, name, { large: true, zoom: true, label: title }) : h("div", { class: "sample large missing" }, "Absent"),
      h("figcaption", {}, icon(iconOf(kindOf(name))), h("strong", {}, title), h("span", { class: "spring" }), labelled ? labelChip(found.label) : null));
    const trust = suspect.trust === null ? null : h("div", { class: "trust" },
      h("span", {}, `Probability that the pair is right: ${suspect.trust < 0.001 ? "below 0.1" : (100 * suspect.trust).toFixed(suspect.trust < 0.1 ? 1 : 0)}%`), h("span", { class: "bar" }, h("i", {})));
    if (trust) trust.querySelector("i").style.width = `${100 * suspect.trust}%`;
    const bar = h("div", { class: "bar progress", role: "progressbar", "aria-label": "Decided", "aria-valuemin": "0", "aria-valuemax": String(counts.suspects), "aria-valuenow": String(done) }, h("i", {}));
    bar.firstChild.style.width = `${(100 * done) / counts.suspects}%`;
    $("review").replaceChildren(
      h("header", { class: "review-head" },
        h("div", {}, h("h1", {}, "Do these belong together?"),
          h("p", { class: "quiet tally", role: "status", "aria-live": "polite" }, `${done} of ${plural(counts.suspects, "pair")} decided: `,
            h("span", {}, `${counts.keep} kept, `), h("span", {}, `${counts.drop} dropped, `), h("span", {}, `${counts["re-pair"]} re-paired`))),
        h("div", { class: "walk" },
          h("button", { type: "button", "aria-label": "Previous pair", disabled: this.at === 0, onclick: () => this.step(-1) }, icon("left")),
          h("span", {}, `${this.at + 1} / ${counts.suspects}`),
          h("button", { type: "button", "aria-label": "Next pair", disabled: this.at + 1 >= counts.suspects, onclick: () => this.step(1) }, icon("right")))),
      bar,
      h("div", { class: `pair ${better ? "with-better" : ""}` },
        part(suspect.index, names[0], names[0], row, true),
        names[1] ? part(suspect.index, names[1], `${names[1]}, as paired`, row, false) : null,
        better && names[1] ? part(suspect.better, names[1], `${names[1]}, proposed`, better, false, "proposed") : null),
      h("div", { class: "why" },
        h("p", {}, h("strong", {}, suspect.id), " ", h("span", { class: "quiet" }, suspect.suspicion),
          suspect.decision ? h("span", { class: "verdict", "data-decision": suspect.decision }, WORDS[suspect.decision]) : null),
        trust),
      h("div", { class: "decide", role: "group", "aria-label": "Decision" },
        this.button("keep", "Keep", "k", suspect), this.button("drop", "Drop", "d", suspect),
        this.button("re-pair", "Re-pair", "r", suspect, !better),
        h("button", { type: "button", id: "undo", onclick: () => this.undo() }, "Undo", h("kbd", {}, "u"))));
    const next = this.suspects[this.at + 1];
    if (next) this.row(next.index).catch(() => {});
  }

  button(decision, title, key, suspect, disabled = false) {
    return h("button", { type: "button", "data-decision": decision, "aria-pressed": String(suspect.decision === decision), disabled, onclick: () => this.decide(decision) },
      title, h("kbd", {}, key));
  }
}
