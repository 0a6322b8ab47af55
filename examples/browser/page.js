// The page: a hopper and a T-maze, each with an agent of its own, in tabs.

import { drawHopper, drawMaze } from "./drawing.js";
import { Hopper } from "./hopper.js";
import { Panel } from "./panel.js";
import { JUNCTION, TMaze } from "./t_maze.js";

const MAZE_STEPS_PER_SECOND = 30;

class HopperPanel extends Panel {
  constructor(section) {
    super(section, "agents/hopper");
    this.seed = 0;
    this.input("target").addEventListener("input", () => {
      this.showTarget();
      // What was earned counts: the rest is left to earn.
      this.agent.ask(this.target - this.earned, this.reward);
    });
  }

  async loadWorld() {
    this.world = await Hopper.load(`${this.folder}/hopper.xml`);
    const { card, defaultTarget } = this.agent;
    const best = card.data_returns.at(-1) ?? 0;
    const target = Number.isFinite(defaultTarget) ? defaultTarget : best;
    const slider = this.input("target");
    slider.max = Math.max(2 * best, 1.5 * target, 100);
    slider.value = target;
    this.showTarget();
    return 1 / this.world.dt;
  }

  get target() {
    return Number(this.input("target").value);
  }

  showTarget() {
    this.show("target", this.target);
  }

  beginEpisode() {
    this.observation = this.world.reset(this.seed++);
    this.agent.reset(this.target);
  }

  describeEpisode({ terminated }) {
    return [this.target, this.earned.toFixed(0), this.steps, terminated ? "fell" : "time is up"];
  }

  draw() {
    drawHopper(this.section.querySelector(".scene"), this.world);
    this.show("earned", this.earned.toFixed(0));
    // The agent takes the last reward off at its next step.
    this.show("left", (this.agent.returnToGo - this.reward).toFixed(0));
    const share = Math.min(Math.max(this.earned / Math.max(this.target, 1), 0), 1);
    this.section.querySelector('[data-bar="earned"]').style.width = `${100 * share}%`;
  }
}

class TMazePanel extends Panel {
  constructor(section) {
    super(section, "agents/t-maze");
    this.input("length").addEventListener("input", () => this.showLength());
    for (const name of ["length", "cue"]) this.input(name).addEventListener("change", () => this.restart());
  }

  async loadWorld() {
    this.world = new TMaze();
    const { environment, longest_episode: longest } = this.agent.card;
    const { shortest = 1, longest: farthest = 150 } = environment.kwargs;
    this.show("trained", `${shortest} to ${farthest}`);
    const slider = this.input("length");
    // An agent with a longest episode cannot act in longer corridors.
    while (longest !== null && lengthOf(slider.max) >= longest && slider.max > 0) slider.max -= 1;
    this.showLength();
    return MAZE_STEPS_PER_SECOND;
  }

  get length() {
    return lengthOf(this.input("length").value);
  }

  showLength() {
    this.show("length", this.length.toLocaleString("en"));
    this.input("length").setAttribute("aria-valuetext", `${this.length} steps`);
  }

  beginEpisode() {
    const cue = Number(this.input("cue").value) || (Math.random() < 0.5 ? -1 : 1);
    this.observation = this.world.reset(this.length, cue);
    this.agent.reset(this.agent.defaultTarget);
    this.show("cue", turn(cue));
  }

  describeEpisode() {
    const { length, cue, answer } = this.world;
    return [length.toLocaleString("en"), turn(cue), turn(answer), answer === cue ? "right" : "wrong"];
  }

  async draw() {
    // Before its first step the agent has seen nothing.
    const seen = this.steps > 0 && this.endedAt === null;
    const [remembered] = seen ? await this.agent.consider(JUNCTION, 0) : [0];
    this.show("remembered", seen ? turn(remembered) : "nothing");
    drawMaze(this.section.querySelector(".scene"), this.world, remembered);
  }
}

/** 37 steps, 75, 150, and so on by doubling. */
function lengthOf(place) {
  return Math.floor(37.5 * 2 ** Number(place));
}

function turn(number) {
  return number > 0 ? "up" : number < 0 ? "down" : "none";
}

const panels = [HopperPanel, TMazePanel].map((kind, i) => new kind(document.querySelectorAll("section")[i]));
const tabs = [...document.querySelectorAll('[role="tab"]')];
const trouble = document.getElementById("trouble");
const troubles = new Map();

function shown() {
  return panels.find((panel) => !panel.section.hidden);
}

function select(chosen) {
  for (const tab of tabs) {
    tab.setAttribute("aria-selected", tab === chosen);
    tab.tabIndex = tab === chosen ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
  }
  showTrouble();
}

function showTrouble() {
  trouble.textContent = troubles.get(shown()) ?? "";
}

tabs.forEach((tab, i) => {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", ({ key }) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[key];
    if (!step) return;
    const next = tabs[(i + step + tabs.length) % tabs.length];
    next.focus();
    select(next);
  });
});

document.addEventListener("keydown", (event) => {
  const button = { " ": "pause", r: "restart", R: "restart" }[event.key];
  // Controls keep their own keys: Space presses a button, and letters choose in a list.
  const taken = event.target.closest(event.key === " " ? "button, select" : "select");
  if (!button || taken || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (shown().section.inert) return;
  event.preventDefault();
  shown().section.querySelector(`[data-do="${button}"]`).click();
});

trouble.textContent = "Loading …";
for (const panel of panels) {
  const run = async () => {
    await panel.load();
    showTrouble();
    await panel.play();
  };
  run().catch((error) => {
    // What WebAssembly throws may be a number.
    troubles.set(panel, error?.message ?? `Stopped by error ${error}. Reload the page.`);
    panel.section.inert = true;
    showTrouble();
    console.error(error);
  });
}
