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
    this.input("asked").addEventListener("input", () => {
      this.showAsked();
      // What was earned counts: the agent is asked for the rest.
      this.agent?.ask(this.asked - this.earned);
    });
  }

  async loadWorld() {
    this.world = await Hopper.load(`${this.folder}/hopper.xml`);
    const slider = this.input("asked");
    const best = this.agent.card.data_returns.at(-1);
    slider.max = Math.ceil(best / 1000) * 2000;
    slider.value = Number.isFinite(this.agent.defaultTarget) ? this.agent.defaultTarget : best;
    this.showAsked();
    return 1 / this.world.dt;
  }

  get asked() {
    return Number(this.input("asked").value);
  }

  showAsked() {
    this.show("asked", this.asked);
  }

  beginEpisode() {
    this.observation = this.world.reset(this.seed++);
    this.agent.reset(this.asked);
  }

  describeEpisode({ terminated }) {
    return [this.asked, this.earned.toFixed(0), this.steps, terminated ? "fell" : "time is up"];
  }

  draw() {
    drawHopper(this.section.querySelector(".scene"), this.world);
    this.show("earned", this.earned.toFixed(0));
    this.show("left", this.agent.returnToGo.toFixed(0));
    const share = Math.min(Math.max(this.earned / Math.max(this.asked, 1), 0), 1);
    this.section.querySelector('[data-bar="earned"]').style.width = `${100 * share}%`;
  }
}

class TMazePanel extends Panel {
  constructor(section) {
    super(section, "agents/t-maze");
    this.input("length").addEventListener("input", () => this.show("length", this.length.toLocaleString("en")));
    for (const name of ["length", "cue"]) this.input(name).addEventListener("change", () => this.agent && this.restart());
  }

  async loadWorld() {
    this.world = new TMaze();
    this.show("length", this.length.toLocaleString("en"));
    return MAZE_STEPS_PER_SECOND;
  }

  /** 37 steps, 75, 150, and so on by doubling, up to 38,400. */
  get length() {
    return Math.floor(37.5 * 2 ** Number(this.input("length").value));
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
    // Before the first step the agent has seen nothing.
    const [remembered] = this.steps ? await this.agent.consider(JUNCTION, 0) : [0];
    this.show("remembered", this.steps ? turn(remembered) : "nothing seen yet");
    drawMaze(this.section.querySelector(".scene"), this.world, remembered);
  }
}

function turn(number) {
  return number > 0 ? "up" : number < 0 ? "down" : "none";
}

const panels = [HopperPanel, TMazePanel].map((kind, i) => new kind(document.querySelectorAll("section")[i]));
const tabs = [...document.querySelectorAll('[role="tab"]')];
const trouble = document.getElementById("trouble");
const troubles = new Map();

function select(chosen) {
  for (const tab of tabs) {
    tab.setAttribute("aria-selected", tab === chosen);
    tab.tabIndex = tab === chosen ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
  }
  trouble.textContent = troubles.get(shown()) ?? "";
}

function shown() {
  return panels.find((panel) => !panel.section.hidden);
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
  // Controls keep their own keys: Space presses a button that has the focus.
  if (event.target.closest("button, select, input") || event.ctrlKey || event.metaKey || event.altKey) return;
  const button = { " ": "pause", r: "restart", R: "restart" }[event.key];
  if (!button) return;
  event.preventDefault();
  shown().section.querySelector(`[data-do="${button}"]`).click();
});

trouble.textContent = "";
for (const panel of panels) {
  panel.load().catch((error) => {
    troubles.set(panel, error.message);
    select(tabs.find((tab) => tab.getAttribute("aria-selected") === "true"));
    console.error(error);
  });
}
