// The driver's hands: keys, pads and the picture itself become steering, gas and brake.

const KEYS = {
  ArrowLeft: "left", ArrowRight: "right", ArrowUp: "gas", ArrowDown: "brake",
  KeyA: "left", KeyD: "right", KeyW: "gas", KeyS: "brake",
};

// A key is all or nothing, a car is not: what is held goes this far, by so much a step, and comes back faster.
const FULL = { steer: 1, gas: 0.8, brake: 0.8 };
const PRESS = 0.1;
const RELEASE = 0.25;

export class Driver {
  /**
   * @param {Element[]} pads buttons with data-pad left, right, gas or brake
   * @param {Element} picture steers to where it is touched
   * @param {() => void} onDrive called whenever something that drives is pressed
   */
  constructor(pads, picture, onDrive) {
    this.held = new Map(); // what holds it (a key's code, a pointer's number) -> left, right, gas, brake
    this.touch = null; // {x, y} on the picture, each 0 to 1
    this.steer = this.gas = this.brake = 0;

    addEventListener("keydown", (event) => {
      const pad = KEYS[event.code];
      if (!pad || event.ctrlKey || event.altKey || event.metaKey || usesArrows(event)) return;
      event.preventDefault(); // arrows would scroll
      this.held.set(event.code, pad);
      if (!event.repeat) onDrive();
    });
    addEventListener("keyup", (event) => this.held.delete(event.code));
    addEventListener("blur", () => this.letGo()); // the keyup goes to another window

    for (const each of [...pads, picture]) each.addEventListener("contextmenu", (event) => event.preventDefault()); // long presses

    for (const pad of pads) {
      pad.addEventListener("pointerdown", (event) => {
        event.preventDefault();
        pad.setPointerCapture(event.pointerId);
        this.held.set(event.pointerId, pad.dataset.pad);
        onDrive();
      });
      for (const end of ["pointerup", "pointercancel"]) {
        pad.addEventListener(end, (event) => this.held.delete(event.pointerId));
      }
      // By keyboard and screen reader a pad is a button: pressed, it is held for a moment.
      pad.addEventListener("click", (event) => {
        if (event.detail !== 0) return;
        this.held.set(pad, pad.dataset.pad);
        setTimeout(() => this.held.delete(pad), 300);
        onDrive();
      });
    }

    const aim = (event) => {
      const box = picture.getBoundingClientRect();
      this.touch = { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
    };
    picture.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      picture.setPointerCapture(event.pointerId);
      aim(event);
      onDrive();
    });
    picture.addEventListener("pointermove", (event) => this.touch && aim(event));
    for (const end of ["pointerup", "pointercancel"]) picture.addEventListener(end, () => (this.touch = null));
  }

  /** Lets go of everything. */
  letGo() {
    this.held.clear();
    this.touch = null;
    this.steer = this.gas = this.brake = 0;
  }

  /** The action of the next step: [steering -1 to 1, gas 0 to 1, brake 0 to 1]. */
  act() {
    const held = new Set(this.held.values());
    let steer = (held.has("right") - held.has("left")) * FULL.steer;
    let gas = held.has("gas") * FULL.gas;
    let brake = held.has("brake") * FULL.brake;
    if (this.touch) {
      // A finger on the picture: the car stands in the middle, a little below; towards it, and braking at the bottom.
      steer = Math.min(Math.max((this.touch.x - 0.5) * 2.5, -1), 1);
      if (this.touch.y > 0.85) brake = FULL.brake;
      else gas = FULL.gas;
    }
    this.steer = towards(this.steer, steer);
    this.gas = towards(this.gas, gas);
    this.brake = towards(this.brake, brake);
    return [this.steer, this.gas, this.brake];
  }
}

function towards(value, aim) {
  const pace = Math.abs(aim) > Math.abs(value) && aim * value >= 0 ? PRESS : RELEASE;
  return Math.abs(aim - value) <= pace ? aim : value + Math.sign(aim - value) * pace;
}

/** A slider in focus moves by the arrows itself. */
function usesArrows(event) {
  return event.target instanceof HTMLInputElement && event.code.startsWith("Arrow");
}
