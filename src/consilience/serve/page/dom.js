// Small things every part of the page needs: elements, icons, requests, pictures, short messages.

export const $ = (id) => document.getElementById(id);

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const PATHS = {
  image: "M4 5h16v14H4zM4 16l4.5-4.5 3.5 3.5 3-3 5 5M15.5 9.5h.01",
  shape: "M12 3l8 4.5v9L12 21l-8-4.5v-9zM12 12l8-4.5M12 12v9M12 12L4 7.5",
  text: "M5 6h14M5 11h14M5 16h9",
  vector: "M5 19V9M10 19V5M15 19v-7M20 19v-4",
  close: "M6 6l12 12M18 6L6 18",
  like: "M4 12a8 8 0 0 1 13.7-5.6L20 8.5M20 4v4.5h-4.5M20 12a8 8 0 0 1-13.7 5.6L4 15.5M4 20v-4.5h4.5",
  plus: "M12 5v14M5 12h14",
  down: "M12 4v11m0 0l-4-4m4 4l4-4M5 19h14",
  left: "M15 5l-7 7 7 7",
  right: "M9 5l7 7-7 7",
};

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "icon");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

export const isPicture = (kind) => kind === "rgb" || kind === "grey";
export const isShape = (kind) => kind === "points" || kind === "mesh";
export const iconOf = (kind) => (isPicture(kind) ? "image" : isShape(kind) ? "shape" : kind === "text" ? "text" : "vector");

export class Failure extends Error {
  constructor(status, reason) {
    super(reason);
    this.status = status;
  }
}

let key = sessionStorage.getItem("consilience-key") ?? "";
let asking = null;

function askForKey(wrong) {
  asking ??= new Promise((resolve) => {
    const dialog = $("key");
    $("key-wrong").hidden = !wrong;
    $("key-value").value = "";
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    $("key-form").addEventListener("submit", () => {
      key = $("key-value").value.trim();
      sessionStorage.setItem("consilience-key", key);
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

export async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  const sent = key;
  if (sent) headers.set("X-API-Key", sent);
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "The server cannot be reached. Is it still running?");
  }
  if (answer.status === 401) {
    if (key === sent) await askForKey(Boolean(sent));
    return call(path, options);
  }
  if (answer.ok) return answer;
  let reason = `The server answered ${answer.status}.`;
  try {
    reason = (await answer.json()).error;
  } catch {
    // no JSON: the status has to do
  }
  throw new Failure(answer.status, reason[0].toUpperCase() + reason.slice(1));
}

export const ask = async (path, options) => (await call(path, options)).json();
export const tell = (path, content) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) });

// With a key pictures cannot be fetched by <img> alone, which sends no header.
export async function show(image, path) {
  image.addEventListener("load", () => image.classList.toggle("pixel", image.naturalWidth <= 40));
  if (!key) {
    image.src = path;
    return;
  }
  try {
    image.src = URL.createObjectURL(await (await call(path)).blob());
  } catch {
    image.dispatchEvent(new Event("error"));
  }
}

export function query(parameters) {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) if (one !== null && one !== undefined) found.append(name, one);
  }
  return found.toString();
}

let fading = 0;
export function say(message) {
  const toast = $("toast");
  toast.textContent = message;
  toast.hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => { toast.hidden = true; }, 4000);
}

export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
export const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Colours of labels: the same label has the same colour everywhere on the page.
const HUES = ["#4477aa", "#ee7733", "#228833", "#aa3377", "#66a8c8", "#ccaa22", "#8866bb", "#cc3311", "#44aa99", "#997755"];
let labels = [];
export const nameLabels = (names) => { labels = names; };
export function labelColour(label) {
  if (label === null || label === undefined) return "#8a8f94";
  const place = labels.indexOf(label);
  if (place >= 0 && labels.length <= HUES.length) return HUES[place];
  let hash = 7;
  for (const letter of String(label)) hash = (hash * 31 + letter.codePointAt(0)) >>> 0;
  return `hsl(${(hash * 137.508) % 360} 45% ${45 + (hash >>> 8) % 15}%)`;
}
