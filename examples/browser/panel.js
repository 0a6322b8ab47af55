// One tab: its controls, its figures, and the loop that steps an agent in its world. Subclasses have `loadWorld`, which
// returns the steps a second at speed 1, `beginEpisode`, `draw`, and `describeEpisode`, the cells of an ended episode.

import { Agent, fetched } from "./agent.js";
import { drawMemory } from "./drawing.js";

const EPISODES_SHOWN = 6;
const PAUSE_AFTER_EPISODE = 700; // ms
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
    this.#connect();
  }

  /** Loads agent and world, compares the agent with the one in Python, and begins. */
  async load() {
    this.agent = await Agent.load(`${this.folder}/step`);
    const episode = await (await fetched(`${this.folder}/check.json`)).json();
    const largest = await this.agent.compare(episode);
    this.section.dataset.difference = largest;
    const steps = episode.actions.length;
    this.show("check", `Over ${steps} steps, actions differ from those in Python by at most ${largest.toExponential(1)}.`);
    this.stepsPerSecond = await this.loadWorld();
    this.restart();
    await this.#draw();
    this.section.dataset.ready = "";
    this.#play();
  }

  show(name, text) {
    this.section.querySelector(`[data-show="${name}"]`).textContent = text;
  }

  input(name) {
    return this.section.querySelector(`[data-set="${name}"]`);
  }

  /** Awaits what a function does, and keeps a running mean of its milliseconds. */
  async timed(name, action) {
    const start = performance.now();
    const result = await action();
    const time = performance.now() - start;
    this.times[name] = this.times[name] === undefined ? time : 0.98 * this.times[name] + 0.02 * time;
    return result;
  }

  /** Starts an episode. */
  restart() {
    this.reward = 0;
    this.earned = 0;
    this.steps = 0;
    this.show("steps", 0);
    // Marks the episode, so that a step under way does not go on in the next one.
    this.episode = Symbol("episode");
    this.beginEpisode();
  }

  async #step() {
    const { episode } = this;
    const action = await this.timed("agent", () => this.agent.act(this.observation, this.reward));
    if (episode !== this.episode) return false;
    const after = await this.timed("world", () => this.world.step(action));
    if (episode !== this.episode) return false;
    [this.observation, this.reward] = [after.observation, after.reward];
    this.earned += after.reward;
    this.steps += 1;
    return after.terminated || after.truncated ? after : false;
  }

  async #play() {
    let before = performance.now();
    let due = 0;
    for (;;) {
      const now = await new Promise(requestAnimationFrame);
      const speed = Number(this.input("speed").value);
      due += ((now - before) / 1000) * this.stepsPerSecond * speed;
      before = now;
      if (this.paused || this.section.hidden) due = 0;
      let end = false;
      while (due >= 1 && !end && performance.now() - now < LONGEST_FRAME) {
        end = await this.#step();
        due -= 1;
      }
      // A machine that is too slow for real time shows slow motion, and does not catch up.
      due = Math.min(due, 1);
      if (!this.section.hidden) await this.#draw();
      if (end) await this.#endEpisode(end);
    }
  }

  async #draw() {
    await this.draw();
    drawMemory(this.section.querySelector(".strip"), this.agent.memory);
    this.show("bytes", this.agent.stateBytes.toLocaleString("en"));
    this.show("steps", this.steps);
    for (const name of ["agent", "world"]) {
      const place = this.section.querySelector(`[data-show="${name}-time"]`);
      if (place && this.times[name] !== undefined) place.textContent = this.times[name].toFixed(2);
    }
  }

  async #endEpisode(end) {
    const row = document.createElement("tr");
    row.append(
      ...this.describeEpisode(end).map((text) => {
        const cell = document.createElement("td");
        cell.textContent = text;
        return cell;
      }),
    );
    const list = this.section.querySelector('[data-show="episodes"]');
    list.prepend(row);
    while (list.children.length > EPISODES_SHOWN) list.lastChild.remove();
    const { episode } = this;
    await new Promise((resolve) => setTimeout(resolve, PAUSE_AFTER_EPISODE));
    if (episode === this.episode) this.restart();
  }

  #connect() {
    const pause = this.section.querySelector('[data-do="pause"]');
    pause.addEventListener("click", () => {
      this.paused = !this.paused;
      pause.textContent = this.paused ? "Go on" : "Pause";
    });
    this.section.querySelector('[data-do="restart"]').addEventListener("click", () => this.agent && this.restart());
  }
}
