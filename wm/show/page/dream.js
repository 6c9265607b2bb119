// The dream: the run's graphs, and one dream that steps as wm/dream/env.py does.
//
// A step: state ─C→ a (or the driver's own a); (state, a, noise) ─M→ state', reward, chance of the end.
// A state is {name: values}, with "z" the latent that V decodes; world.json says its names and sizes.

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

  /** How many states lie side by side. */
  rows(state) {
    return state.z.length / this.about.z;
  }

  /** Parts of a state as tensors. */
  #tensors(state, names) {
    const rows = this.rows(state);
    return Object.fromEntries(names.map((name) => [name, tensor(state[name], rows, this.about.state[name])]));
  }

  /** Start `number` as a state. */
  async start(number) {
    const found = await this.starts.run({ number: new ort.Tensor("int32", Int32Array.of(number), [1]) });
    return Object.fromEntries(Object.keys(this.about.state).map((name) => [name, found[name].data]));
  }

  /** What the controller does, f32[N * A], in N states side by side. */
  async act(state) {
    return (await this.controller.run(this.#tensors(state, this.about.reads))).a.data;
  }

  /** M's step for N dreams that share their noise, {name: values} for one: the outputs of dream.onnx by name, flat. */
  async step(state, a, noise, temperature) {
    const { about } = this;
    const rows = this.rows(state);
    const given = { a: tensor(a, rows, about.actions.names.length), temperature: tensor(Float32Array.of(temperature), 1) };
    for (const [name, { size }] of Object.entries(about.noises)) {
      given[name] = tensor(repeat(noise[name], rows), rows, size);
    }
    const found = await this.dream.run({ ...this.#tensors(state, Object.keys(about.state)), ...given });
    return Object.fromEntries(Object.entries(found).map(([name, value]) => [name, value.data]));
  }

  /** The picture of the first of the latents z: f32[3 * height * width] in [0, 1], colour by colour. */
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
    this.action = new Float32Array(this.world.about.actions.names.length);
  }

  /** From now on the controller's own dream goes on beside this one, with the same random numbers. */
  fork() {
    if (this.controllerRun) return;
    for (const name in this.state) this.state[name] = repeat(this.state[name], 2);
    this.controllerRun = { score: this.score, over: false };
  }

  /** The controller's score from this start. */
  get controllerScore() {
    return this.controllerRun ? this.controllerRun.score : this.score;
  }

  /**
   * Dreams one step.
   * @param {?ArrayLike<number>} action within its bounds; null lets the controller drive
   * @param {number} temperature above 0
   */
  async step(action, temperature) {
    const { about } = this.world;
    const actions = (await this.world.act(this.state)).slice();
    if (action) actions.set(action);
    this.action = actions.slice(0, about.actions.names.length);
    // In the order of wm/dream/env.py: what is uniform, the draw of the end, what is normal.
    const noises = Object.entries(about.noises);
    const noise = {};
    const draw = (distribution, one) => {
      for (const [name, each] of noises) {
        if (each.distribution === distribution) noise[name] = Float32Array.from({ length: each.size }, one);
      }
    };
    draw("uniform", () => this.random.uniform());
    const endDraw = this.random.uniform();
    draw("normal", () => this.random.normal());
    const next = await this.world.step(this.state, actions, noise, temperature);
    this.state = Object.fromEntries(Object.keys(about.state).map((name) => [name, next[`next_${name}`]]));
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
        for (const name in this.state) this.state[name] = first(this.state[name]);
      }
    }
  }

  /** The picture now, as `World.decode` gives it. */
  picture() {
    return this.world.decode(this.state.z);
  }
}

const first = (values) => values.slice(0, values.length / 2);
