// One tab: its controls, its figures, and the loop that steps an agent in its world. Subclasses have `loadWorld`, which
// returns the steps a second at speed 1, `beginEpisode`, `draw`, and `describeEpisode`, the cells of an ended episode.

import { Agent, fetched } from "./agent.js";
import { drawState } from "./drawing.js";

const LARGEST_DIFFERENCE = 1e-3; // of an action here from the same in Python
const EPISODES_SHOWN = 6;
const PAUSE_AFTER_EPISODE = 700; // ms
const LONGEST_GAP = 100; // ms between two frames that count
const LONGEST_FRAME = 40; // ms of steps before the page draws again

export class Panel {
  /**
   * @param {HTMLElement} section - its tab's panel
   * @param {string} folder - that prepare.py wrote
   */
  constructor(section, folder) {
    this.section = section;
    this.folder = folder;
    this.paused = false;
    this.times = {};
    section.inert = true;
    this.#connect();
  }

  /** Loads agent and world, and compares the agent with the one in Python. */
  async load() {
    this.agent = await Agent.load(`${this.folder}/step`);
    const episode = await (await fetched(`${this.folder}/check.json`)).json();
    const largest = await this.agent.compare(episode);
    const figure = largest.toExponential(1);
    if (!(largest < LARGEST_DIFFERENCE)) {
      throw new Error(`Actions differ from those in Python by ${figure}. Run prepare.py with this agent again.`);
    }
    this.section.dataset.difference = largest;
    this.show("check", `Over ${episode.actions.length} steps, actions differ from those in Python by at most ${figure}.`);
    this.stepsPerSecond = await this.loadWorld();
    this.#begin();
    await this.#draw();
    this.section.inert = false;
    this.section.dataset.ready = "";
  }

  /** Steps and draws for as long as the page is open. */
  async play() {
    let before = performance.now();
    let due = 0;
    for (;;) {
      const now = await new Promise(requestAnimationFrame);
      const elapsed = Math.min(now - before, LONGEST_GAP);
      before = now;
      if (this.section.hidden) continue;
      const over = this.endedAt !== null;
      if (this.restarts || (over && !this.paused && now > this.endedAt + PAUSE_AFTER_EPISODE)) {
        this.#begin();
        due = 0;
      } else if (!this.paused && !over) {
        due += (elapsed / 1000) * this.stepsPerSecond * Number(this.input("speed").value);
        while (due >= 1 && this.endedAt === null && performance.now() - now < LONGEST_FRAME) {
          await this.#step();
          due -= 1;
        }
        // A machine that is too slow for real time shows slow motion, and does not catch up.
        due = Math.min(due, 1);
      }
      await this.#draw();
    }
  }

  /** Starts an episode with the next frame. */
  restart() {
    this.restarts = true;
  }

  show(name, text) {
    this.section.querySelector(`[data-show="${name}"]`).textContent = text;
  }

  input(name) {
    return this.section.querySelector(`[data-set="${name}"]`);
  }

  #begin() {
    [this.reward, this.earned, this.steps, this.endedAt, this.restarts] = [0, 0, 0, null, false];
    this.beginEpisode();
  }

  async #step() {
    const action = await this.#timed("agent", () => this.agent.act(this.observation, this.reward));
    const after = await this.#timed("world", () => this.world.step(action));
    [this.observation, this.reward] = [after.observation, after.reward];
    this.earned += after.reward;
    this.steps += 1;
    if (after.terminated || after.truncated) {
      this.endedAt = performance.now();
      this.#list(this.describeEpisode(after));
    }
  }

  /** Awaits what a function does, and keeps a running mean of its milliseconds. */
  async #timed(name, action) {
    const start = performance.now();
    const result = await action();
    const time = performance.now() - start;
    this.times[name] = this.times[name] === undefined ? time : 0.98 * this.times[name] + 0.02 * time;
    return result;
  }

  async #draw() {
    await this.draw();
    drawState(this.section.querySelector(".strip"), this.agent.state);
    this.show("bytes", this.agent.stateBytes.toLocaleString("en"));
    this.show("steps", this.steps);
    for (const name of ["agent", "world"]) {
      const place = this.section.querySelector(`[data-show="${name}-time"]`);
      if (place && this.times[name] !== undefined) place.textContent = this.times[name].toFixed(2);
    }
  }

  #list(cells) {
    const row = document.createElement("tr");
    for (const text of cells) row.insertCell().textContent = text;
    const list = this.section.querySelector('[data-show="episodes"]');
    list.prepend(row);
    while (list.children.length > EPISODES_SHOWN) list.lastChild.remove();
  }

  #connect() {
    const pause = this.section.querySelector('[data-do="pause"]');
    pause.addEventListener("click", () => {
      this.paused = !this.paused;
      pause.textContent = this.paused ? "Go on" : "Pause";
    });
    this.section.querySelector('[data-do="restart"]').addEventListener("click", () => this.restart());
  }
}
