// The passive T-maze (Ni et al. 2023, arXiv 2307.03864): a cue, a corridor, and the question what the cue was.

/** What the agent sees at the junction: no cue, and a 1. */
export const JUNCTION = [0, 1];

export class TMaze {
  constructor() {
    this.length = 0;
  }

  /** Starts an episode. `cue` is 1 (turn up) or -1 (turn down), and is shown at the first step alone. */
  reset(length, cue) {
    [this.length, this.cue, this.steps, this.answer] = [length, cue, 0, 0];
    return [cue, 0];
  }

  /** Moves along the corridor; at the junction, the sign of the action is the turn. */
  step(action) {
    this.steps += 1;
    if (this.steps <= this.length) {
      return { observation: this.steps === this.length ? JUNCTION : [0, 0], reward: 0, terminated: false };
    }
    this.answer = Math.sign(action[0]);
    return { observation: [0, 0], reward: this.answer === this.cue ? 1 : 0, terminated: true };
  }
}
