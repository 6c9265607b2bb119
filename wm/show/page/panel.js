// The panel: what M says as it goes, drawn on canvases in the page's own colours.

const HISTORY = 200; // steps in the curves
const LOWEST = 1e-5; // chance at the foot of the logarithmic axis

export class Panel {
  /**
   * @param {object} about world.json
   * @param {{z: HTMLCanvasElement, mixture: HTMLCanvasElement, reward: HTMLCanvasElement, end: HTMLCanvasElement}} canvases
   */
  constructor(about, canvases) {
    this.about = about;
    this.canvases = canvases;
    this.begin();
  }

  /** Forgets the curves. */
  begin() {
    this.rewards = [];
    this.chances = [];
  }

  /** Takes in what M said in a step. */
  add(said) {
    for (const [line, value] of [[this.rewards, said.reward], [this.chances, said.terminated]]) {
      line.push(value);
      if (line.length > HISTORY) line.shift();
    }
  }

  /** Draws everything; `said` is null before the first step. */
  draw(z, said) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    this.#bars(z, colour);
    this.#mixture(said, colour);
    const [low, high] = [Math.min(...this.rewards, -0.1), Math.max(...this.rewards, 1)];
    this.#curve(this.canvases.reward, this.rewards, (r) => (r - low) / (high - low), colour("you"), colour, [
      [0, "0"], [1, "1"],
    ]);
    const log = (p) => 1 - Math.log(Math.max(p, LOWEST)) / Math.log(LOWEST);
    this.#curve(this.canvases.end, this.chances, log, colour("warn"), colour, [
      [1e-4, "0.01%"], [1e-2, "1%"], [1, "100%"],
    ]);
  }

  #bars(z, colour) {
    const [ink, width, height] = fresh(this.canvases.z);
    const count = this.about.z;
    const pitch = width / count;
    ink.fillStyle = colour("edge");
    ink.fillRect(0, height / 2, width, 1);
    ink.fillStyle = colour("you");
    for (let i = 0; i < count; i++) {
      // As strong as the dimension differs between moments: a dead one is noise that nobody sees.
      ink.globalAlpha = 0.12 + 0.88 * Math.min(1, this.about.spread[i] / 0.5) ** 2;
      const value = Math.min(Math.max(z[i] / 3, -1), 1) * (height / 2);
      ink.fillRect(i * pitch + 1, Math.min(height / 2, height / 2 - value), Math.max(pitch - 2, 1), Math.abs(value));
    }
  }

  #mixture(said, colour) {
    const [ink, width, height] = fresh(this.canvases.mixture);
    if (!said?.weights) return;
    const { z } = this.about;
    const mixtures = said.weights.length / z;
    ink.fillStyle = colour("you");
    for (let k = 0; k < mixtures; k++) {
      for (let i = 0; i < z; i++) {
        ink.globalAlpha = said.weights[k * z + i];
        ink.fillRect((i * width) / z + 0.5, (k * height) / mixtures + 0.5, width / z - 1, height / mixtures - 1);
      }
    }
  }

  #curve(canvas, values, place, stroke, colour, marks) {
    const [ink, width, height] = fresh(canvas);
    const [left, foot] = [46, height - 6];
    const y = (value) => foot - place(value) * (height - 16);
    ink.font = "12px system-ui, sans-serif";
    ink.textAlign = "right";
    ink.textBaseline = "middle";
    for (const [value, text] of marks) {
      ink.fillStyle = colour("edge");
      ink.fillRect(left, y(value), width - left, 1);
      ink.fillStyle = colour("soft");
      ink.fillText(text, left - 6, y(value));
    }
    ink.strokeStyle = stroke;
    ink.lineWidth = 2;
    ink.lineJoin = "round";
    ink.beginPath();
    values.forEach((value, i) => ink.lineTo(left + ((width - left) * i) / (HISTORY - 1), y(value)));
    ink.stroke();
  }
}

/** An empty canvas as sharp as the screen, with its size in CSS pixels. */
function fresh(canvas) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const [across, down] = [width, height].map((size) => Math.round(size * devicePixelRatio));
  if (canvas.width !== across || canvas.height !== down) [canvas.width, canvas.height] = [across, down];
  const ink = canvas.getContext("2d");
  ink.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
  ink.globalAlpha = 1;
  ink.clearRect(0, 0, width, height);
  return [ink, width, height];
}
