// The dream: the run's graphs, and one dream that steps as wm/dream/env.py does.
//
// A step: [z, h] ─C→ a (or the driver's own a); (z, h, c, a, noise) ─M→ z', h', c', reward, chance of the end.

import * as ort from "./runtime/ort.js";
import { Random } from "./random.js";

// More threads need headers that few static hosts send, and these graphs are too small to gain by them.
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL("./runtime/ort.wasm", import.meta.url).href };

const tensor = (values, ...shape) => new ort.Tensor("float32", values, shape);

/** The run's graphs and what world.json says of them. */
export class World {
  /** Fetches everything; throws an Error that says what is missing. */
  static async load() {
    const world = new World();
    const fetched = async (name) => {
      const answer = await fetch(new URL(name, import.meta.url));
      if (!answer.ok) throw new Error(`${name} is missing beside the page (${answer.status})`);
      return answer;
    };
    Object.assign(world, { about: await (await fetched("world.json")).json() });
    for (const name of ["starts", "dream", "controller", "decoder"]) {
      const graph = new Uint8Array(await (await fetched(`${name}.onnx`)).arrayBuffer());
      world[name] = await ort.InferenceSession.create(graph);
    }
    return world;
  }

  /** Start `number` as {z, h, c}. */
  async start(number) {
    const found = await this.starts.run({ number: new ort.Tensor("int32", Int32Array.of(number), [1]) });
    return { z: found.z.data, h: found.h.data, c: found.c.data };
  }

  /** What the controller does, f32[N * 3], in N states side by side. */
  async act({ z, h }) {
    const { about } = this;
    const rows = z.length / about.z;
    return (await this.controller.run({ z: tensor(z, rows, about.z), h: tensor(h, rows, about.hidden) })).a.data;
  }

  /** M's step for N dreams that share their noise: the outputs of dream.onnx by name, each flat. */
  async step({ z, h, c }, a, uniform, noise, temperature) {
    const { about } = this;
    const rows = z.length / about.z;
    const found = await this.dream.run({
      z: tensor(z, rows, about.z),
      h: tensor(h, rows, about.hidden),
      c: tensor(c, rows, about.hidden),
      a: tensor(a, rows, about.actions),
      uniform: tensor(repeat(uniform, rows), rows, about.z),
      noise: tensor(repeat(noise, rows), rows, about.z),
      temperature: tensor(Float32Array.of(temperature), 1),
    });
    return Object.fromEntries(Object.entries(found).map(([name, value]) => [name, value.data]));
  }

  /** The picture of the first of the latents z: f32[3 * 64 * 64] in [0, 1], colour by colour. */
  async decode(z) {
    return (await this.decoder.run({ z: tensor(z.slice(0, this.about.z), 1, this.about.z) })).x.data;
  }
}

function repeat(values, times) {
  const all = new Float32Array(values.length * times);
  for (let i = 0; i < times; i++) all.set(values, i * values.length);
  return all;
}

/** One dream, and from the moment on that somebody takes over, beside it what the controller makes of the same start. */
export class Dream {
  /** @param {World} world */
  constructor(world) {
    this.world = world;
  }

  /**
   * Begins anew.
   * @param {number} start number of the start
   * @param {number} seed of all random numbers in it
   */
  async begin(start, seed) {
    this.state = await this.world.start(start);
    this.random = new Random(seed);
    this.start = start;
    this.steps = 0;
    this.score = 0;
    this.over = ""; // or why it has ended
    this.controllerRun = null; // or {score, over}: the controller, which goes on in the second row of the state
    this.said = null; // what M said in the last step
    this.action = new Float32Array(this.world.about.actions);
  }

  /** From now on the controller's own dream goes on beside this one, with the same random numbers. */
  fork() {
    if (this.controllerRun) return;
    for (const name of ["z", "h", "c"]) this.state[name] = repeat(this.state[name], 2);
    this.controllerRun = { score: this.score, over: false };
  }

  /** The controller's score from this start. */
  get controllerScore() {
    return this.controllerRun ? this.controllerRun.score : this.score;
  }

  /**
   * Dreams one step.
   * @param {?ArrayLike<number>} action steering, gas, brake; null lets the controller drive
   * @param {number} temperature above 0
   */
  async step(action, temperature) {
    const { about } = this.world;
    const actions = (await this.world.act(this.state)).slice();
    if (action) actions.set([clip(action[0], -1), clip(action[1], 0), clip(action[2], 0)]);
    this.action = actions.slice(0, about.actions);
    const uniform = Float32Array.from({ length: about.z }, () => this.random.uniform());
    const endDraw = this.random.uniform();
    const noise = Float32Array.from({ length: about.z }, () => this.random.normal());
    const next = await this.world.step(this.state, actions, uniform, noise, temperature);
    this.state = { z: next.next_z, h: next.next_h, c: next.next_c };
    this.said = { weights: next.weights, reward: next.reward[0], terminated: next.terminated[0] };
    this.steps += 1;

    const ends = (row) => endDraw < next.terminated[row];
    this.score += ends(0) ? about.rewards.end : next.reward[0];
    if (ends(0)) this.over = "terminated";
    else if (this.steps >= about.horizon) this.over = "truncated";
    if (this.controllerRun && !this.controllerRun.over) {
      this.controllerRun.score += ends(1) ? about.rewards.end : next.reward[1];
      if (ends(1)) {
        this.controllerRun.over = true;
        this.state = { z: this.state.z.slice(0, about.z), h: first(this.state.h), c: first(this.state.c) };
      }
    }
  }

  /** The picture now, as `World.decode` gives it. */
  picture() {
    return this.world.decode(this.state.z);
  }
}

const first = (values) => values.slice(0, values.length / 2);
const clip = (value, low) => Math.min(Math.max(value, low), 1);
