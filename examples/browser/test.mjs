// Opens the page in Chromium and watches it act: `npm test`, after `npm ci` and prepare.py with agents for both tabs.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { test } from "node:test";
import { chromium } from "playwright-core";

const BROWSER = process.env.CHROMIUM ?? "/usr/bin/chromium";
const FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const PATIENCE = 120_000; // ms, on a busy machine

for (const tab of ["hopper", "t-maze"]) {
  assert.ok(existsSync(new URL(`agents/${tab}/check.json`, import.meta.url)), `no agent for ${tab}; run prepare.py with one`);
}
const server = spawn("python3", ["-u", "-m", "http.server", "0", "--bind", "127.0.0.1"], { cwd: import.meta.dirname });
process.on("exit", () => server.kill());
const address = await new Promise((resolve) => {
  let said = "";
  server.stdout.on("data", (text) => {
    said += text;
    const port = /port (\d+) /.exec(said);
    if (port) resolve(`http://127.0.0.1:${port[1]}/`);
  });
});
const browser = await chromium.launch({ executablePath: BROWSER, args: FLAGS });
test.after(async () => {
  await browser.close();
  server.kill();
});

/** The page with its console's errors and the addresses that it asked for. */
async function open(options = {}, prepare = async () => {}) {
  const page = await browser.newPage(options);
  await prepare(page);
  page.setDefaultTimeout(PATIENCE);
  const errors = [];
  const requested = [];
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("request", (request) => requested.push(request.url()));
  await page.goto(address);
  return { page, errors, requested };
}

const number = async (place) => Number((await place.textContent()).replaceAll(",", ""));

/** Waits for an ended episode whose row begins with these cells; all its cells. */
async function endedEpisode(page, tab, ...first) {
  await page.waitForFunction(
    ([tab, first]) => {
      const row = document.querySelector(`#${tab} [data-show="episodes"] tr`);
      return row && first.every((text, i) => row.children[i].textContent === text);
    },
    [tab, first],
  );
  return page.locator(`#${tab} [data-show="episodes"] tr`).first().locator("td").allTextContents();
}

test("the hopper acts as in Python, survives, and nothing comes from elsewhere", async () => {
  const { page, errors, requested } = await open({ viewport: { width: 1100, height: 660 } });
  const hopper = page.locator("#hopper");
  await page.locator("#hopper[data-ready]").waitFor();
  assert.ok(Number(await hopper.getAttribute("data-difference")) < 1e-4);

  await hopper.locator('[data-set="speed"]').selectOption({ label: "fastest" });
  await page.waitForFunction(() => document.querySelectorAll('#hopper [data-show="episodes"] tr').length === 3);
  const rows = await hopper.locator('[data-show="episodes"] tr').all();
  const episodes = await Promise.all(rows.map((row) => row.locator("td").allTextContents()));
  const longest = episodes.map((cells) => cells.map(Number)).reduce((one, two) => (one[2] > two[2] ? one : two));
  assert.ok(longest[2] >= 300, `fell after ${longest[2]} steps`);
  assert.ok(longest[1] > 300, `${longest[1]} earned`);
  if (process.env.SCREENSHOT) await screenshot(page, hopper, process.env.SCREENSHOT);

  assert.deepEqual(errors, []);
  assert.deepEqual(requested.filter((url) => !url.startsWith(address) && !url.startsWith("data:")), []);
  await page.close();
});

test("the hopper's world is Gymnasium's", async () => {
  const { page } = await open();
  await page.locator("#hopper[data-ready]").waitFor();
  const largest = await page.evaluate(async () => {
    const { Hopper } = await import("./hopper.js");
    const world = await Hopper.load("agents/hopper/hopper.xml");
    const { observations, rewards, actions } = await (await fetch("agents/hopper/check.json")).json();
    world.reset(0);
    // Observations are the whole state but for the distance, on which nothing depends.
    world.data.qpos.set([0, ...observations[0].slice(0, 5)]);
    world.data.qvel.set(observations[0].slice(5));
    world.mujoco.mj_forward(world.model, world.data);
    let largest = 0;
    for (let t = 0; t < Math.min(100, actions.length - 1); t++) {
      const { observation, reward } = world.step(actions[t]);
      const differences = observation.map((value, i) => Math.abs(value - observations[t + 1][i]));
      largest = Math.max(largest, Math.abs(reward - rewards[t + 1]), ...differences);
    }
    return largest;
  });
  assert.ok(largest < 1e-3, `observations and rewards differ by ${largest}`);
  console.log(`# 100 steps of MuJoCo differ from Gymnasium's by at most ${largest.toExponential(1)}`);
  await page.close();
});

test("another target counts what was earned", async () => {
  const { page } = await open();
  const hopper = page.locator("#hopper");
  await page.locator("#hopper[data-ready]").waitFor();
  await page.waitForFunction(() => Number(document.querySelector('#hopper [data-show="earned"]').textContent) > 50);
  await hopper.locator('[data-do="pause"]').click();
  await page.getByRole("slider", { name: "Target return" }).fill("500");
  const sum = async () => {
    await page.waitForTimeout(200);
    return (await number(hopper.locator('[data-show="earned"]'))) + (await number(hopper.locator('[data-show="left"]')));
  };
  // Both figures are rounded.
  assert.ok(Math.abs((await sum()) - 500) <= 1);
  await hopper.locator('[data-do="pause"]').click();
  await page.waitForTimeout(200);
  await hopper.locator('[data-do="pause"]').click();
  assert.ok(Math.abs((await sum()) - 500) <= 1);
  await page.close();
});

test("the T-maze is solved at 2,400 steps, with the keyboard, on a narrow screen", async () => {
  const { page, errors } = await open({ viewport: { width: 360, height: 740 } });
  await page.locator("#t-maze[data-ready]").waitFor({ state: "attached" });
  await page.locator("#tab-hopper").focus();
  await page.keyboard.press("ArrowRight");
  const maze = page.locator("#t-maze");
  assert.ok(await maze.isVisible());
  assert.ok(Number(await maze.getAttribute("data-difference")) < 1e-4);
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(overflow <= 0, `${overflow} pixels beside the screen`);

  await page.getByRole("slider", { name: "Corridor, steps" }).fill("6");
  await maze.locator('[data-set="speed"]').selectOption({ label: "fastest" });
  for (const cue of ["up", "down"]) {
    await maze.locator('[data-set="cue"]').selectOption({ label: cue });
    const [, , turned, verdict] = await endedEpisode(page, "t-maze", "2,400", cue);
    assert.deepEqual([turned, verdict], [cue, "right"]);
  }
  assert.deepEqual(errors, []);
  await page.close();
});

test("keys pause and restart, wherever the focus is", async () => {
  const { page } = await open();
  await page.locator("#hopper[data-ready]").waitFor();
  const steps = page.locator('#hopper [data-show="steps"]');
  const moved = () => page.waitForFunction(() => Number(document.querySelector('#hopper [data-show="steps"]').textContent) > 20);
  const still = async () => {
    await page.waitForTimeout(300);
    const before = await number(steps);
    await page.waitForTimeout(300);
    return (await number(steps)) === before;
  };
  await moved();
  await page.keyboard.press(" ");
  assert.ok(await still());
  await page.locator("#hopper input").focus();
  await page.keyboard.press("r");
  await page.waitForFunction(() => document.querySelector('#hopper [data-show="steps"]').textContent === "0");
  await page.keyboard.press(" ");
  await moved();
  await page.locator('#hopper [data-do="pause"]').focus();
  await page.keyboard.press(" ");
  assert.ok(await still());
  await page.close();
});

test("every episode is shown from its first step", async () => {
  const { page } = await open();
  await page.locator("#t-maze[data-ready]").waitFor({ state: "attached" });
  await page.locator("#tab-t-maze").click();
  await page.evaluate(() => {
    window.cues = 0;
    const steps = document.querySelector('#t-maze [data-show="steps"]');
    new MutationObserver(() => (window.cues += steps.textContent === "0")).observe(steps, { childList: true });
  });
  await page.locator('#t-maze [data-set="length"]').fill("0");
  await page.locator('#t-maze [data-set="speed"]').selectOption({ label: "fastest" });
  await page.waitForFunction(() => document.querySelectorAll('#t-maze [data-show="episodes"] tr').length === 4);
  assert.ok((await page.evaluate(() => window.cues)) >= 3);
  await page.close();
});

test("an agent that acts otherwise than in Python is refused", async () => {
  const { page } = await open({}, async (page) => {
    await page.route("**/agents/hopper/check.json", async (route) => {
      const episode = await (await route.fetch()).json();
      episode.actions[3][0] += 0.01;
      await route.fulfill({ json: episode });
    });
  });
  await page.locator("#trouble", { hasText: "Actions differ from those in Python by 1.0e-2" }).waitFor();
  await page.close();
});

test("a missing agent is said, with what to do", async () => {
  const { page } = await open({}, (page) => page.route("**/agents/hopper/**", (route) => route.fulfill({ status: 404 })));
  await page.locator("#trouble", { hasText: "Run prepare.py with an agent for this tab" }).waitFor();
  await page.close();
});

/** The page in mid-episode. */
async function screenshot(page, hopper, path) {
  await hopper.locator('[data-set="speed"]').selectOption({ label: "real time" });
  await hopper.locator('[data-do="restart"]').click();
  await page.waitForTimeout(500);
  await page.waitForFunction(() => Number(document.querySelector('#hopper [data-show="steps"]').textContent) > 200);
  await page.screenshot({ path });
}
