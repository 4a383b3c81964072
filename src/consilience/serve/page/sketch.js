// The drawing area: pen, eraser, width; finished strokes come out as a picture like those of the Table.

import { $, ask, query, show } from "./dom.js";

const SIDE = 280, OUT = 128, FILL = 0.72;

export class Sketch {
  constructor(done) {
    this.canvas = $("sketch");
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.done = done;
    this.erasing = false;
    this.dark = false;
    this.empty = true;
    this.wipe();
    this.listen();
  }

  // Paper and ink as in the Table: digits are often white on black.
  async matchPaper(modality) {
    try {
      const { items } = await ask(`/api/items?${query({ k: 6, modality })}`);
      const pixels = await Promise.all(items.map((item) => border(`/api/items/${item.index}/${modality}/thumbnail`)));
      this.dark = pixels.filter((value) => value < 0.4).length > pixels.length / 2;
    } catch {
      this.dark = false;
    }
    if (this.empty) this.wipe();
  }

  listen() {
    const { canvas, context } = this;
    let last = null;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return [((event.clientX - box.left) / box.width) * SIDE, ((event.clientY - box.top) / box.height) * SIDE];
    };
    const stroke = (from, to) => {
      context.strokeStyle = this.erasing !== this.dark ? "#fff" : "#000";
      context.lineWidth = Number($("width").value) * (this.erasing ? 1.8 : 1);
      context.lineCap = context.lineJoin = "round";
      context.beginPath();
      context.moveTo(...from);
      context.lineTo(to[0] + 0.01, to[1]);
      context.stroke();
    };
    canvas.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      canvas.setPointerCapture(event.pointerId);
      last = place(event);
      stroke(last, last);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      for (const part of event.getCoalescedEvents?.() ?? [event]) {
        const next = place(part);
        stroke(last, next);
        last = next;
      }
    });
    const end = () => {
      if (!last) return;
      last = null;
      this.empty = false;
      this.done(this);
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("keydown", (event) => {
      if (event.key === "Delete" || event.key === "Backspace") this.clear();
    });
    $("pen").addEventListener("click", () => this.use(false));
    $("eraser").addEventListener("click", () => this.use(true));
    $("wipe").addEventListener("click", () => this.clear());
  }

  use(erasing) {
    this.erasing = erasing;
    $("pen").setAttribute("aria-pressed", String(!erasing));
    $("eraser").setAttribute("aria-pressed", String(erasing));
  }

  wipe() {
    this.context.fillStyle = this.dark ? "#000" : "#fff";
    this.context.fillRect(0, 0, SIDE, SIDE);
    this.empty = true;
  }

  clear() {
    this.wipe();
    this.use(false);
    this.done(this);
  }

  // The drawing cut out, centred and scaled as handwritten digits usually are; null when nothing is drawn.
  async picture() {
    const { data } = this.context.getImageData(0, 0, SIDE, SIDE);
    let [left, top, right, bottom, mass, mx, my] = [SIDE, SIDE, -1, -1, 0, 0, 0];
    for (let y = 0; y < SIDE; y++) {
      for (let x = 0; x < SIDE; x++) {
        const ink = (this.dark ? data[4 * (y * SIDE + x)] : 255 - data[4 * (y * SIDE + x)]) / 255;
        if (ink < 0.2) continue;
        left = Math.min(left, x); right = Math.max(right, x);
        top = Math.min(top, y); bottom = Math.max(bottom, y);
        mass += ink; mx += ink * x; my += ink * y;
      }
    }
    if (!mass) return null;
    const scale = (OUT * FILL) / Math.max(right - left, bottom - top, 40);
    const out = document.createElement("canvas");
    out.width = out.height = OUT;
    const context = out.getContext("2d");
    context.fillStyle = this.dark ? "#000" : "#fff";
    context.fillRect(0, 0, OUT, OUT);
    context.translate(OUT / 2, OUT / 2);
    context.scale(scale, scale);
    context.translate(-mx / mass, -my / mass);
    context.beginPath();
    context.rect(left - 1, top - 1, right - left + 3, bottom - top + 3);
    context.clip();
    context.drawImage(this.canvas, 0, 0);
    return new Promise((resolve) => { out.toBlob(resolve, "image/png"); });
  }
}

// Mean brightness of a picture's border, 0 to 1.
async function border(path) {
  const image = new Image();
  const loaded = new Promise((resolve, reject) => {
    image.onload = resolve;
    image.onerror = reject;
  });
  show(image, path);
  await loaded;
  const canvas = document.createElement("canvas");
  const side = (canvas.width = canvas.height = 24);
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, side, side);
  context.drawImage(image, 0, 0, side, side);
  const { data } = context.getImageData(0, 0, side, side);
  let [sum, count] = [0, 0];
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      if (x && y && x < side - 1 && y < side - 1) continue;
      sum += data[4 * (y * side + x) + 1] / 255;
      count++;
    }
  }
  return sum / count;
}
