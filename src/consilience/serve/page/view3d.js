// A small 3-D viewer: clouds and triangles with a depth buffer, drawn in software on a 2-D canvas, so that a page may
// show dozens of them and needs no graphics card. Drag or use the arrow keys to turn.

import { call, colour, still } from "./dom.js";

const YAW = 0.5, PITCH = 0.28, LARGEST = 560;
const shapes = new Map();

export function shape(path) {
  if (!shapes.has(path)) {
    const loading = call(path).then((answer) => answer.arrayBuffer()).then(unpack);
    loading.catch(() => shapes.delete(path));
    shapes.set(path, loading);
    if (shapes.size > 300) shapes.delete(shapes.keys().next().value);
  }
  return shapes.get(path);
}

export function unpack(buffer) {
  const mark = new TextDecoder().decode(new Uint8Array(buffer, 0, 4));
  const count = new DataView(buffer).getUint32(4, true);
  return { triangles: mark === "TRIS", count, numbers: new Float32Array(buffer, 8) };
}

export class View {
  // options: label (for screen readers), spin (turn slowly by itself until touched), zoom (wheel and pinch)
  constructor(canvas, { label = "3-D shape", spin = false, zoom = false } = {}) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.yaw = YAW;
    this.pitch = PITCH;
    this.scale = 1;
    this.shape = null;
    this.spinning = false;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${label}. Drag or use the arrow keys to turn it.`);
    canvas.classList.add("turn");
    this.listen(zoom);
    this.sizes = new ResizeObserver(() => this.draw());
    this.sizes.observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    if (spin) this.spin();
  }

  set(shape) {
    this.shape = shape;
    this.draw();
  }

  listen(zoom) {
    const { canvas } = this;
    let last = null;
    canvas.addEventListener("pointerdown", (event) => {
      last = [event.clientX, event.clientY];
      this.spinning = false;
      this.dragged = 0;
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      const [x, y] = [event.clientX - last[0], event.clientY - last[1]];
      this.dragged += Math.abs(x) + Math.abs(y);
      last = [event.clientX, event.clientY];
      this.turn(x * 0.012, y * 0.012);
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { last = null; });
    canvas.addEventListener("click", (event) => {
      if (this.dragged > 6) event.stopPropagation();
    }, true);
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.15], ArrowDown: [0, 0.15] }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      this.spinning = false;
      this.turn(...step);
    });
    if (zoom) {
      canvas.addEventListener("wheel", (event) => {
        event.preventDefault();
        this.scale = Math.min(6, Math.max(0.5, this.scale * Math.exp(-event.deltaY * 0.0015)));
        this.draw();
      }, { passive: false });
    }
  }

  turn(yaw, pitch) {
    this.yaw += yaw;
    this.pitch = Math.min(1.55, Math.max(-1.55, this.pitch + pitch));
    this.draw();
  }

  spin() {
    if (still() || this.spinning) return;
    this.spinning = true;
    let before = performance.now();
    const frame = (now) => {
      if (!this.spinning || !this.canvas.isConnected) return;
      this.turn((now - before) * 0.0005, 0);
      before = now;
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  stop() {
    this.spinning = false;
  }

  draw() {
    const side = Math.min(LARGEST, Math.round(this.canvas.clientWidth * Math.min(2, devicePixelRatio || 1)));
    if (!side || !this.shape) return;
    if (this.canvas.width !== side) this.canvas.width = this.canvas.height = side;
    const image = this.context.createImageData(side, side);
    const depth = new Float32Array(side * side).fill(-Infinity);
    const turn = rotation(this.yaw, this.pitch);
    const [ink, far] = (this.shape.triangles ? ["--face", "--face-dark"] : ["--shape", "--shape-far"]).map((name) => rgb(colour(name)));
    const scale = side * 0.46 * this.scale;
    (this.shape.triangles ? drawTriangles : drawPoints)(this.shape, turn, scale, side, image.data, depth, ink, far);
    this.context.putImageData(image, 0, 0);
  }
}

function rotation(yaw, pitch) {
  const [cy, sy, cp, sp] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
  return [cy, 0, sy, sp * sy, cp, -sp * cy, -cp * sy, sp, cp * cy];
}

function rgb(text) {
  const value = parseInt(text.slice(1), 16);
  return [(value >> 16) & 255, (value >> 8) & 255, value & 255];
}

function drawPoints(shape, m, scale, side, out, depth, ink, far) {
  const { numbers, count } = shape;
  const radius = Math.max(1.1, side * (count > 800 ? 0.0075 : count > 300 ? 0.012 : 0.018));
  const whole = Math.ceil(radius);
  for (let i = 0; i < 3 * count; i += 3) {
    const [x, y, z] = [numbers[i], numbers[i + 1], numbers[i + 2]];
    const px = side / 2 + scale * (m[0] * x + m[1] * y + m[2] * z);
    const py = side / 2 - scale * (m[3] * x + m[4] * y + m[5] * z);
    const pz = m[6] * x + m[7] * y + m[8] * z;
    const near = Math.min(1, Math.max(0, (pz + 1) / 2));
    for (let dy = -whole; dy <= whole; dy++) {
      for (let dx = -whole; dx <= whole; dx++) {
        const [u, v] = [Math.round(px) + dx, Math.round(py) + dy];
        const away = Math.hypot(u - px, v - py);
        if (away > radius + 0.5 || u < 0 || v < 0 || u >= side || v >= side) continue;
        const place = v * side + u;
        if (pz < depth[place]) continue;
        if (away <= radius - 0.5) depth[place] = pz;
        blend(out, 4 * place, ink, far, near, Math.min(1, radius + 0.5 - away));
      }
    }
  }
}

function blend(out, at, ink, far, near, cover) {
  const before = out[at + 3] / 255;
  const alpha = cover + before * (1 - cover);
  for (let c = 0; c < 3; c++) {
    const value = far[c] + (ink[c] - far[c]) * near;
    out[at + c] = (value * cover + out[at + c] * before * (1 - cover)) / Math.max(alpha, 1e-6);
  }
  out[at + 3] = 255 * alpha;
}

function drawTriangles(shape, m, scale, side, out, depth, ink, far) {
  const { numbers, count } = shape;
  const p = new Float32Array(9);
  for (let face = 0; face < count; face++) {
    for (let corner = 0; corner < 3; corner++) {
      const at = 9 * face + 3 * corner;
      const [x, y, z] = [numbers[at], numbers[at + 1], numbers[at + 2]];
      p[3 * corner] = side / 2 + scale * (m[0] * x + m[1] * y + m[2] * z);
      p[3 * corner + 1] = side / 2 - scale * (m[3] * x + m[4] * y + m[5] * z);
      p[3 * corner + 2] = scale * (m[6] * x + m[7] * y + m[8] * z);
    }
    fill(p, side, out, depth, ink, far);
  }
}

function fill(p, side, out, depth, ink, far) {
  const [x0, y0, z0, x1, y1, z1, x2, y2, z2] = p;
  const area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0);
  if (Math.abs(area) < 1e-9) return;
  const nx = (y1 - y0) * (z2 - z0) - (z1 - z0) * (y2 - y0);
  const ny = (z1 - z0) * (x2 - x0) - (x1 - x0) * (z2 - z0);
  const length = Math.hypot(nx, ny, area) || 1;
  const flip = area > 0 ? 1 : -1; // both sides of a face are seen
  const light = Math.min(1, 0.18 + 0.82 * Math.max(0, (flip * (-0.35 * nx - 0.55 * ny + 0.76 * area)) / length));
  const colours = [0, 1, 2].map((c) => far[c] + (ink[c] - far[c]) * light);
  const left = Math.max(0, Math.floor(Math.min(x0, x1, x2)));
  const right = Math.min(side - 1, Math.ceil(Math.max(x0, x1, x2)));
  const top = Math.max(0, Math.floor(Math.min(y0, y1, y2)));
  const bottom = Math.min(side - 1, Math.ceil(Math.max(y0, y1, y2)));
  for (let y = top; y <= bottom; y++) {
    for (let x = left; x <= right; x++) {
      const a = ((x1 - x) * (y2 - y) - (x2 - x) * (y1 - y)) / area;
      const b = ((x2 - x) * (y0 - y) - (x0 - x) * (y2 - y)) / area;
      const c = 1 - a - b;
      if (a < -0.001 || b < -0.001 || c < -0.001) continue;
      const z = a * z0 + b * z1 + c * z2;
      const place = y * side + x;
      if (z <= depth[place]) continue;
      depth[place] = z;
      out[4 * place] = colours[0];
      out[4 * place + 1] = colours[1];
      out[4 * place + 2] = colours[2];
      out[4 * place + 3] = 255;
    }
  }
}
