// Random numbers that follow from a seed, so that the same start can be dreamt again with the same random numbers.

export class Random {
  /** @param {number} seed a whole number */
  constructor(seed) {
    // splitmix32 spreads the seed over the state of sfc32, a small generator without known flaws.
    let s = seed >>> 0;
    const spread = () => {
      s = (s + 0x9e3779b9) | 0;
      let t = s ^ (s >>> 16);
      t = Math.imul(t, 0x21f0aaad);
      t ^= t >>> 15;
      t = Math.imul(t, 0x735a2d97);
      return t ^ (t >>> 15);
    };
    [this.a, this.b, this.c, this.counter] = [spread(), spread(), spread(), 1];
    for (let i = 0; i < 12; i++) this.bits();
  }

  /** 32 random bits. */
  bits() {
    const t = (((this.a + this.b) | 0) + this.counter) | 0;
    this.counter = (this.counter + 1) | 0;
    this.a = this.b ^ (this.b >>> 9);
    this.b = (this.c + (this.c << 3)) | 0;
    this.c = ((this.c << 21) | (this.c >>> 11)) + t | 0;
    return t >>> 0;
  }

  /** A number in [0, 1) of 24 bits: float32 holds it exactly, so that it is not rounded up to 1. */
  uniform() {
    return (this.bits() >>> 8) / 0x1000000;
  }

  /** A standard normal number (Box and Muller's way). */
  normal() {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }
}
