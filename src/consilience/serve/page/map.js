// The map: every dot a sample, near dots alike. Drag, wheel, pinch or keys; close up the dots become pictures.

import { $, ask, colour, h, isShape, labelColour, plural, query, show } from "./dom.js";
import { detail, kindOf, labelChip, sample } from "./cards.js";

const CLOSE = 70; // dots in sight below which pictures are drawn
const PICTURE = 58;

export class WorldMap {
  constructor(facets) {
    this.facets = facets;
    this.canvas = $("map");
    this.context = this.canvas.getContext("2d");
    this.places = null;
    this.hidden = new Set();
    this.pictures = new Map();
    this.centre = [0, 0];
    this.zoom = 1;
    this.over = -1;
    this.modality = null;
    this.started = false;
    this.frame = 0;
    this.listen();
    new ResizeObserver(() => this.redraw()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  async open() {
    this.redraw();
    if (this.started) return;
    this.started = true;
    await this.load(null);
  }

  async load(modality) {
    this.note("Loading the map…");
    let found;
    try {
      for (;;) {
        found = await ask(`/api/map?${query({ modality })}`);
        this.showModalities(found);
        if (found.state !== "making") break;
        this.note("Laying the map out for the first time; this takes a moment…");
        await new Promise((resolve) => { setTimeout(resolve, 1500); });
      }
    } catch (error) {
      this.started = false;
      this.note(error.message);
      return;
    }
    if (found.state === "failed") {
      this.note("The map could not be made; the server's log says why.");
      return;
    }
    this.modality = found.modality;
    this.places = found;
    this.pictures.clear();
    this.showLegend();
    this.all();
    const shown = found.index.length;
    this.note(shown < found.rows ? `${shown.toLocaleString("en")} of ${plural(found.rows, "sample")}` : plural(shown, "sample"));
  }

  note(text) {
    $("map-note").textContent = text;
  }

  showModalities(found) {
    $("map-modalities").replaceChildren(...found.modalities.map((name) => h("button", {
      type: "button", class: "pill", "aria-pressed": String(name === found.modality), onclick: () => this.load(name),
    }, name)));
  }

  showLegend() {
    const counts = new Map();
    for (const label of this.places.label) counts.set(label, (counts.get(label) ?? 0) + 1);
    const names = Object.keys(this.facets.label).filter((label) => counts.has(label));
    const most = names.length > 24 ? names.sort((a, b) => counts.get(b) - counts.get(a)).slice(0, 24) : names;
    $("legend").replaceChildren(...most.map((label) => h("li", {}, h("button", {
      type: "button", "aria-pressed": "true", onclick: (event) => {
        if (this.hidden.has(label)) this.hidden.delete(label);
        else this.hidden.add(label);
        event.currentTarget.setAttribute("aria-pressed", String(!this.hidden.has(label)));
        this.redraw();
      },
    }, labelChip(label)))));
  }

  // geometry: map coordinates are in [-1, 1], y up

  unit() {
    return Math.min(this.canvas.clientWidth, this.canvas.clientHeight) * 0.46 * this.zoom;
  }

  toScreen(x, y) {
    const unit = this.unit();
    return [this.canvas.clientWidth / 2 + (x - this.centre[0]) * unit, this.canvas.clientHeight / 2 - (y - this.centre[1]) * unit];
  }

  toMap(x, y) {
    const unit = this.unit();
    return [this.centre[0] + (x - this.canvas.clientWidth / 2) / unit, this.centre[1] - (y - this.canvas.clientHeight / 2) / unit];
  }

  move(dx, dy) {
    this.centre[0] -= dx / this.unit();
    this.centre[1] += dy / this.unit();
    this.centre = this.centre.map((value) => Math.min(1.2, Math.max(-1.2, value)));
    this.redraw();
  }

  scale(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const before = this.toMap(x, y);
    this.zoom = Math.min(80, Math.max(0.8, this.zoom * factor));
    const after = this.toMap(x, y);
    this.centre[0] += before[0] - after[0];
    this.centre[1] += before[1] - after[1];
    this.redraw();
  }

  all() {
    this.centre = [0, 0];
    this.zoom = 1;
    this.redraw();
  }

  // hands

  listen() {
    const { canvas } = this;
    const fingers = new Map();
    let moved = 0;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, at(event));
      moved = 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      const now = at(event);
      const before = fingers.get(event.pointerId);
      if (!before) {
        this.hover(...now);
        return;
      }
      if (fingers.size === 2) {
        const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
        const middle = [(now[0] + other[0]) / 2, (now[1] + other[1]) / 2];
        this.scale(Math.hypot(now[0] - other[0], now[1] - other[1]) / Math.max(1, Math.hypot(before[0] - other[0], before[1] - other[1])), ...middle);
        this.move((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
      } else this.move(now[0] - before[0], now[1] - before[1]);
      moved += Math.abs(now[0] - before[0]) + Math.abs(now[1] - before[1]);
      fingers.set(event.pointerId, now);
      this.hover(-1e6, -1e6);
    });
    canvas.addEventListener("pointerup", (event) => {
      if (fingers.delete(event.pointerId) && moved < 6) this.choose(...at(event));
    });
    canvas.addEventListener("pointercancel", (event) => fingers.delete(event.pointerId));
    canvas.addEventListener("pointerleave", () => this.hover(-1e6, -1e6));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.hover(-1e6, -1e6);
      this.scale(Math.exp(-event.deltaY * 0.0016), ...at(event));
      this.hover(...at(event));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
      if (step) this.move(...step);
      else if (event.key === "+" || event.key === "=") this.scale(1.4);
      else if (event.key === "-") this.scale(1 / 1.4);
      else if (event.key === "0") this.all();
      else if (event.key === "Enter") this.choose(canvas.clientWidth / 2, canvas.clientHeight / 2, Infinity);
      else return;
      event.preventDefault();
    });
    $("zoom-in").addEventListener("click", () => this.scale(1.6));
    $("zoom-out").addEventListener("click", () => this.scale(1 / 1.6));
    $("zoom-all").addEventListener("click", () => this.all());
  }

  nearest(x, y, reach) {
    if (!this.places) return -1;
    let [best, distance] = [-1, reach];
    for (let i = 0; i < this.places.index.length; i++) {
      if (this.hidden.has(this.places.label[i])) continue;
      const [u, v] = this.toScreen(this.places.x[i], this.places.y[i]);
      const away = Math.hypot(u - x, v - y);
      if (away < distance) [best, distance] = [i, away];
    }
    return best;
  }

  choose(x, y, reach = 26) {
    const found = this.nearest(x, y, reach);
    if (found >= 0) detail(this.places.index[found], this.modality);
  }

  hover(x, y) {
    const found = this.nearest(x, y, this.inSight <= CLOSE ? PICTURE / 2 : 14);
    if (found === this.over) return;
    this.over = found;
    this.canvas.style.cursor = found >= 0 ? "pointer" : "grab";
    const tip = $("tip");
    tip.hidden = found < 0;
    if (found >= 0) {
      const { index, label } = this.places;
      tip.replaceChildren(sample(index[found], this.modality), labelChip(label[found]) ?? `Row ${index[found]}`);
      const [u, v] = this.toScreen(this.places.x[found], this.places.y[found]);
      tip.style.left = `${Math.min(this.canvas.clientWidth - 150, Math.max(8, u + 16))}px`;
      tip.style.top = `${Math.min(this.canvas.clientHeight - 180, Math.max(8, v - 60))}px`;
    }
    this.redraw();
  }

  // drawing

  redraw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.draw());
  }

  draw() {
    const { canvas, context, places } = this;
    const ratio = Math.min(2, devicePixelRatio || 1);
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width) return;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    if (!places) return;
    const sight = [];
    for (let i = 0; i < places.index.length; i++) {
      if (this.hidden.has(places.label[i])) continue;
      const [u, v] = this.toScreen(places.x[i], places.y[i]);
      if (u > -40 && v > -40 && u < width + 40 && v < height + 40) sight.push([i, u, v]);
    }
    this.inSight = sight.length;
    const close = sight.length <= CLOSE && kindOf(this.modality) !== "text";
    const radius = Math.max(2.2, Math.min(7, 2 + this.zoom * 0.45)) * (places.index.length < 600 ? 1.6 : 1);
    context.globalAlpha = close ? 1 : 0.78;
    for (const [i, u, v] of sight) {
      context.fillStyle = labelColour(places.label[i]);
      context.beginPath();
      context.arc(u, v, radius, 0, 2 * Math.PI);
      context.fill();
    }
    context.globalAlpha = 1;
    if (close) for (const entry of sight) this.drawPicture(...entry);
    if (this.over >= 0) {
      const [u, v] = this.toScreen(places.x[this.over], places.y[this.over]);
      context.strokeStyle = colour("--ink");
      context.lineWidth = 2;
      context.beginPath();
      if (close) context.roundRect(u - PICTURE / 2 - 2, v - PICTURE / 2 - 2, PICTURE + 4, PICTURE + 4, 8);
      else context.arc(u, v, radius + 3, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  drawPicture(i, u, v) {
    const { context } = this;
    const image = this.picture(this.places.index[i]);
    if (!image?.complete || !image.naturalWidth) return;
    const half = PICTURE / 2;
    context.save();
    context.beginPath();
    context.roundRect(u - half, v - half, PICTURE, PICTURE, 7);
    context.fillStyle = isShape(kindOf(this.modality)) ? "#fff" : colour("--raised");
    context.fill();
    context.strokeStyle = labelColour(this.places.label[i]);
    context.lineWidth = 3;
    context.stroke();
    context.clip();
    const scale = Math.min(PICTURE / image.naturalWidth, PICTURE / image.naturalHeight);
    const [w, t] = [image.naturalWidth * scale, image.naturalHeight * scale];
    context.imageSmoothingEnabled = image.naturalWidth > 40;
    context.drawImage(image, u - w / 2, v - t / 2, w, t);
    context.restore();
  }

  picture(index) {
    if (!this.pictures.has(index)) {
      const image = new Image();
      image.addEventListener("load", () => this.redraw());
      show(image, `/api/items/${index}/${this.modality}/thumbnail`);
      this.pictures.set(index, image);
    }
    return this.pictures.get(index);
  }
}
