// The driver's hands: keys, pads and the picture itself become an action.

const KEYS = {
  ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down",
  KeyA: "left", KeyD: "right", KeyW: "up", KeyS: "down",
};

// A key is all or nothing, what it drives is not: a value goes so far a step, in parts of its largest bound, and comes
// back faster.
const PRESS = 0.1;
const RELEASE = 0.25;

export class Driver {
  /**
   * @param {object} about world.json
   * @param {Element[]} pads buttons with data-pad left, right, up or down
   * @param {Element} picture is driven to where it is touched
   * @param {() => void} onDrive called whenever something that drives is pressed
   */
  constructor(about, pads, picture, onDrive) {
    this.keys = about.keys; // what a held key adds to the action, by its name: left, right, up, down
    this.actions = about.actions;
    this.reach = about.actions.low.map((low, i) => Math.max(Math.abs(low), Math.abs(about.actions.high[i])));
    this.held = new Map(); // what holds it (a key's code, a pointer's number) -> left, right, up, down
    this.touch = null; // {x, y} on the picture, each 0 to 1
    this.action = about.actions.names.map(() => 0);

    addEventListener("keydown", (event) => {
      const pad = KEYS[event.code];
      if (!(pad in this.keys) || event.ctrlKey || event.altKey || event.metaKey || usesArrows(event)) return;
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
    this.action.fill(0);
  }

  /** How strongly each key is held, 0 to 1 by its name. */
  pressed() {
    if (!this.touch) return Object.fromEntries([...this.held.values()].map((name) => [name, 1]));
    // A finger on the picture: what is driven stands in the middle, a little below; towards it, and down at the bottom.
    const across = Math.min(Math.max((this.touch.x - 0.5) * 2.5, -1), 1);
    const along = this.actions.discrete ? 1 - Math.abs(across) : 1; // of several choices only one can be taken
    const sides = { left: Math.max(-across, 0), right: Math.max(across, 0) };
    return { ...sides, [this.touch.y > 0.85 ? "down" : "up"]: along };
  }

  /** The action of the next step, within its bounds; of several choices a 1 for the chosen one. */
  act() {
    const wanted = this.action.map(() => 0);
    for (const [name, strength] of Object.entries(this.pressed())) {
      (this.keys[name] ?? []).forEach((value, i) => (wanted[i] += strength * value));
    }
    if (this.actions.discrete) {
      const chosen = wanted.indexOf(Math.max(...wanted));
      return wanted.map((_, i) => Number(i === chosen));
    }
    const { low, high } = this.actions;
    this.action = this.action.map((value, i) =>
      Math.min(Math.max(towards(value, wanted[i], this.reach[i]), low[i]), high[i]),
    );
    return this.action;
  }
}

/** The name of a pad: what it does, if no other key does it, too; else the key's own. */
export function padName(about, key) {
  const strongest = (values) => values.reduce((best, value, i) => (Math.abs(value) > Math.abs(values[best]) ? i : best), 0);
  const mine = strongest(about.keys[key]);
  const sharing = Object.values(about.keys).filter((values) => strongest(values) === mine);
  return sharing.length > 1 ? key : about.actions.names[mine];
}

/** How far an action goes where a key leads to, 0 to 1. */
export function amountOf(about, key, action) {
  const { low, high, discrete } = about.actions;
  const parts = about.keys[key].map((value, i) => {
    if (!value) return 0;
    return (action[i] * Math.sign(value)) / (discrete ? 1 : Math.max(Math.abs(low[i]), Math.abs(high[i])));
  });
  return Math.max(0, ...parts);
}

function towards(value, aim, reach) {
  const pace = reach * (Math.abs(aim) > Math.abs(value) && aim * value >= 0 ? PRESS : RELEASE);
  return Math.abs(aim - value) <= pace ? aim : value + Math.sign(aim - value) * pace;
}

/** A slider in focus moves by the arrows itself. */
function usesArrows(event) {
  return event.target instanceof HTMLInputElement && event.code.startsWith("Arrow");
}
