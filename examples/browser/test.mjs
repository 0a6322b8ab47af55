// Opens the page in Chromium and watches it act: `npm test`, after `npm ci` and prepare.py with agents for both tabs.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { test } from "node:test";
import { chromium } from "playwright-core";

const BROWSER = process.env.CHROMIUM ?? "/usr/bin/chromium";
const FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const PATIENCE = 120_000; // ms, on a busy machine

const server = spawn("python3", ["-u", "-m", "http.server", "0", "--bind", "127.0.0.1"], { cwd: import.meta.dirname });
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
async function open(options = {}) {
  const page = await browser.newPage(options);
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
  const { page, errors, requested } = await open({ viewport: { width: 1100, height: 640 } });
  const hopper = page.locator("#hopper");
  await page.locator("#hopper[data-ready]").waitFor();
  assert.ok(Number(await hopper.getAttribute("data-difference")) < 1e-4);

  await hopper.locator('[data-set="speed"]').selectOption({ label: "fastest" });
  const bytes = await number(hopper.locator('[data-show="bytes"]'));
  const [asked, earned, steps] = (await endedEpisode(page, "hopper")).map(Number);
  assert.ok(steps >= 300, `fell after ${steps} steps`);
  assert.ok(earned > 300 && asked > 0);
  assert.equal(await number(hopper.locator('[data-show="bytes"]')), bytes);
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
    for (let t = 0; t < 100; t++) {
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

test("another return is asked for in mid-episode", async () => {
  const { page } = await open();
  const hopper = page.locator("#hopper");
  await page.locator("#hopper[data-ready]").waitFor();
  await hopper.locator('[data-do="pause"]').click();
  await hopper.locator('[data-set="asked"]').fill("500");
  await page.waitForFunction(() => Number(document.querySelector('#hopper [data-show="left"]').textContent) <= 500);
  assert.equal(await hopper.locator('[data-show="asked"]').textContent(), "500");
  await page.close();
});

test("the T-maze is solved at 2,400 steps, with the keyboard, on a narrow screen", async () => {
  const { page, errors } = await open({ viewport: { width: 360, height: 740 } });
  await page.locator("#t-maze[data-ready]").waitFor({ state: "attached" });
  await page.locator("#tab-hopper").focus();
  await page.keyboard.press("ArrowRight");
  const maze = page.locator("#t-maze");
  assert.ok(await maze.isVisible());
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(overflow <= 0, `${overflow} pixels beside the screen`);

  await maze.locator('[data-set="length"]').fill("6");
  await maze.locator('[data-set="speed"]').selectOption({ label: "fastest" });
  for (const cue of ["up", "down"]) {
    await maze.locator('[data-set="cue"]').selectOption({ label: cue });
    const [, , turned, verdict] = await endedEpisode(page, "t-maze", "2,400", cue);
    assert.deepEqual([turned, verdict], [cue, "right"]);
  }
  assert.deepEqual(errors, []);
  await page.close();
});

test("keys pause and restart", async () => {
  const { page } = await open();
  await page.locator("#hopper[data-ready]").waitFor();
  const steps = page.locator('#hopper [data-show="steps"]');
  await page.waitForFunction(() => Number(document.querySelector('#hopper [data-show="steps"]').textContent) > 20);
  await page.keyboard.press(" ");
  await page.waitForTimeout(300);
  const before = await number(steps);
  await page.waitForTimeout(300);
  assert.equal(await number(steps), before);
  await page.keyboard.press("r");
  await page.waitForFunction(() => document.querySelector('#hopper [data-show="steps"]').textContent === "0");
  await page.close();
});

test("a missing agent is said, with what to do", async () => {
  const page = await browser.newPage();
  await page.route("**/agents/hopper/**", (route) => route.fulfill({ status: 404 }));
  await page.goto(address);
  await page.locator("#trouble", { hasText: "Run prepare.py" }).waitFor();
  await page.close();
});

/** The page in mid-episode. */
async function screenshot(page, hopper, path) {
  await hopper.locator('[data-set="speed"]').selectOption({ label: "real time" });
  await hopper.locator('[data-do="restart"]').click();
  await page.waitForFunction(() => Number(document.querySelector('#hopper [data-show="steps"]').textContent) > 200);
  await page.screenshot({ path });
}
