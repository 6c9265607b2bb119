// The page: one loop that dreams, draws and shows; what is pressed only leaves wishes for it.

import { Dream, World } from "./dream.js";
import { Driver, amountOf, padName } from "./driver.js";
import { Panel } from "./panel.js";

const $ = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search); // ?start=7&seed=1&temperature=0.5&paused

const MOST_LATE = 8; // steps that may be caught up with before the next picture; what is more is let go
const PANEL_EVERY = 60; // milliseconds
const touch = matchMedia("(pointer: coarse)").matches;
const NEXT_DEMO = 2500; // milliseconds that the end of the controller's own dream stays in sight

let world, dream, driver, panel;
let you = false; // whether you drive
let paused = asked.has("paused") || matchMedia("(prefers-reduced-motion: reduce)").matches;
let single = false; // one step though paused
let wish = null; // {start, seed} to begin at
let seed = 0; // of the dream that is on
let tookAt = 0; // when you took the wheel
let endedAt = 0; // when the dream came to its end

// --- what can be pressed -----------------------------------------------------------------------------------

function takeOver() {
  if (you) return;
  paused = false; // who grasps the wheel wants to go
  you = true;
  tookAt = performance.now();
}

function handBack() {
  you = false;
  driver.letGo();
}

const restart = () => (wish = { start: dream.start, seed });
const below = (count) => Math.floor(Math.random() * count);
const anotherStart = () => (wish = { start: below(world.about.starts), seed: below(2 ** 31) });

const BUTTONS = {
  hand: () => (you ? handBack() : takeOver()),
  pause: () => (paused = !paused),
  step: () => ([paused, single] = [true, true]),
  restart,
  another: anotherStart,
};
const SHORTCUTS = { c: "hand", p: "pause", ".": "step", r: "restart", n: "another" };

function listen() {
  for (const [id, press] of Object.entries(BUTTONS)) {
    $(id).disabled = false;
    $(id).addEventListener("click", press);
  }
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented) return; // it drives, by where it lies, whatever letter a layout has there
    const id = SHORTCUTS[event.key.toLowerCase()];
    if (id && !event.ctrlKey && !event.altKey && !event.metaKey && !(event.repeat && id !== "step")) BUTTONS[id]();
    if (event.code === "Space" && event.target === document.body) {
      event.preventDefault(); // it would scroll
      BUTTONS.pause();
    }
  });
  const slider = $("temperature");
  slider.disabled = false;
  slider.addEventListener("input", showTemperature);
  slider.addEventListener("pointerup", () => slider.blur()); // so that the arrows drive again
}

const temperature = () => Number($("temperature").value);

function showTemperature() {
  $("tau").textContent = temperature().toFixed(2);
  const words = [[0.3, "frozen"], [0.75, "calm"], [1.25, "as learnt"], [1.75, "wild"], [Infinity, "feverish"]];
  $("mood").textContent = words.find(([most]) => temperature() < most)[1];
}

// --- what is shown -----------------------------------------------------------------------------------------

/** Writes only what changes: screen readers and layout are spared the rest. */
function write(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

/** A number with a true minus sign, and none before a zero. */
const written = (value, digits = 0) => value.toFixed(digits).replace(/^-(?=[0.]*$)/, "").replace("-", "−");

function say() {
  if (dream.over) {
    const why = dream.over === "terminated" ? "M thinks that the episode ends here" : `${dream.steps} steps are up`;
    const result = dream.controllerRun ? `You\u00a0${written(dream.score)}, controller\u00a0${written(dream.controllerRun.score)}. ` : "";
    return `The dream is over: ${why}. ${result}${touch ? "" : "R: again. N: new start."}`;
  }
  const wheel = touch ? "touch the picture or the pads" : "arrow keys or W A S D";
  if (paused) return you ? "Paused while you drive." : `Paused. To take the wheel: ${wheel}.`;
  if (!you) return `The controller drives. Take the wheel: ${wheel}.`;
  return performance.now() < tookAt + 4000 ? `You drive${touch ? "" : ". C hands back to the controller"}.` : "";
}

function show(rates) {
  document.body.dataset.driver = you ? "you" : "controller";
  document.body.dataset.paused = String(paused);
  write("say", say());
  $("say").hidden = $("say").textContent === "";
  write("score-you", dream.controllerRun || you ? written(dream.score) : "–");
  write("score-controller", written(dream.controllerScore));
  write("count", `step ${dream.steps} of ${world.about.horizon}`);
  write("where", `start ${dream.start + 1} of ${world.about.starts}`);
  write("rate", paused ? "paused" : `${rates.steps.toFixed(0)} steps/s`);
  write("pictures", rates.pictures.toFixed(0));
  write("hand-text", you ? "Hand back" : "Take the wheel");
  write("pause-text", paused ? "Go on" : "Pause");
  $("pause").setAttribute("aria-pressed", String(paused));
  for (const key in world.about.keys) {
    $(`pad-${key}`).style.setProperty("--amount", amountOf(world.about, key, dream.action).toFixed(2));
  }
}

function showPanel() {
  panel.draw(dream.state.z, dream.said);
  if (!dream.said) return;
  write("reward-now", written(dream.said.reward, 2));
  if (dream.said.weights) write("futures", String(dream.said.weights.length / world.about.z));
  const percent = 100 * dream.said.terminated;
  write("end-now", percent < 0.01 ? "< 0.01%" : `${percent.toPrecision(2)}%`);
}

function aboutRun() {
  const { run, title, bytes, runtime, score } = world.about;
  const real = score ? ` On ${score.episodes} real tracks the controller scores ${score.mean.toFixed(0)} ± ${score.std.toFixed(0)}.` : "";
  return `Run ${run} of ${title}: ${(bytes / 1e6).toFixed(1)} MB of weights, computed in your browser by ${runtime}; nothing leaves it.${real}`;
}

let picture, pixels;

/** Gives the canvas the picture's size, and the page its shape. */
function makePicture({ height, width, aspect }) {
  [$("picture").width, $("picture").height] = [width, height];
  document.documentElement.style.setProperty("--aspect", String(aspect));
  picture = $("picture").getContext("2d");
  pixels = picture.createImageData(width, height);
}

function paint(x) {
  const size = pixels.width * pixels.height;
  for (let i = 0; i < size; i++) {
    for (let colour = 0; colour < 3; colour++) pixels.data[4 * i + colour] = Math.round(255 * x[colour * size + i]);
    pixels.data[4 * i + 3] = 255;
  }
  picture.putImageData(pixels, 0, 0);
}

const ARROWS = { left: ["◀", "ArrowLeft A"], right: ["▶", "ArrowRight D"], down: ["▼", "ArrowDown S"], up: ["▲", "ArrowUp W"] };

/** The pads of the keys that the environment has, each with what it does. */
function makePads(about) {
  return Object.keys(ARROWS).filter((key) => key in about.keys).map((key) => {
    const [pad, arrow] = [document.createElement("button"), document.createElement("b")];
    Object.assign(pad, { type: "button", className: "pad", id: `pad-${key}` });
    pad.dataset.pad = key;
    pad.setAttribute("aria-keyshortcuts", ARROWS[key][1]);
    arrow.setAttribute("aria-hidden", "true");
    arrow.textContent = ARROWS[key][0];
    pad.append(arrow, ` ${padName(about, key)}`);
    $("pads").append(pad);
    return pad;
  });
}

/** Counts what happened within the last second. */
class Rate {
  times = [];
  count(now, n) {
    for (let i = 0; i < n; i++) this.times.push(now);
    while (this.times.length && this.times[0] <= now - 1000) this.times.shift();
    return this.times.length;
  }
}

// --- the loop ----------------------------------------------------------------------------------------------

async function begin({ start, seed: chosen }) {
  [seed, single] = [chosen, false];
  await dream.begin(start, seed);
  panel.begin();
}

async function advance() {
  if (you) dream.fork();
  await dream.step(you ? driver.act() : null, temperature());
  panel.add(dream.said);
  if (dream.over) endedAt = performance.now();
}

async function live() {
  const pace = 1000 / world.about.steps_per_second;
  const [stepped, painted] = [new Rate(), new Rate()];
  let [last, due, panelAt] = [performance.now(), 0, 0];
  for (;;) {
    const now = await new Promise(requestAnimationFrame);
    due = Math.min(due + (now - last) / pace, MOST_LATE);
    last = now;
    if (dream.over && !dream.controllerRun && now > endedAt + NEXT_DEMO && !paused) anotherStart();
    let taken = 0;
    let changed = false;
    if (wish) {
      const wanted = wish;
      wish = null;
      await begin(wanted);
      changed = true;
    }
    if (paused || dream.over) due = 0;
    if (single && !dream.over) [due, single] = [1, false];
    for (; due >= 1 && !dream.over && !wish; due -= 1, taken += 1) await advance();
    if (taken || changed) paint(await dream.picture());
    const rates = { steps: stepped.count(now, taken), pictures: painted.count(now, taken ? 1 : 0) };
    show(rates);
    if ((taken || changed) && (now > panelAt + PANEL_EVERY || paused)) {
      showPanel();
      panelAt = now;
    }
  }
}

async function main() {
  world = await World.load();
  dream = new Dream(world);
  const { about } = world;
  makePicture(about.frame);
  panel = new Panel(about, { z: $("z"), mixture: $("mixture"), reward: $("reward"), end: $("end") });
  const start = asked.has("start") ? Number(asked.get("start")) : below(about.starts);
  if (!(Number.isInteger(start) && start >= 0 && start < about.starts)) {
    throw new Error(`there is no start ${asked.get("start")}, only 0 to ${about.starts - 1}`);
  }
  if (asked.has("temperature")) $("temperature").value = asked.get("temperature");
  await begin({ start, seed: asked.has("seed") ? Number(asked.get("seed")) : below(2 ** 31) });
  driver = new Driver(about, makePads(about), $("picture"), takeOver);
  write("title", about.title);
  write("numbers", String(about.z));
  $("futures-figure").hidden = !world.dream.outputNames.includes("weights");
  const { hit, miss, pulse } = about.rewards;
  if (pulse) write("pays", `A step with a reward pays ${written(hit, 1)} on average, any other ${written(miss, 1)}.`);
  write("about", aboutRun());
  listen();
  showTemperature();
  paint(await dream.picture());
  show({ steps: 0, pictures: 0 });
  showPanel();
  document.body.dataset.ready = "true";
  await live();
}

main().catch((error) => {
  console.error(error);
  $("say").hidden = false;
  write("say", `The dream cannot run here: ${error.message}.`);
});
