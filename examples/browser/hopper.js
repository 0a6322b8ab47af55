// Gymnasium's Hopper-v5 over MuJoCo's WebAssembly build: its observations, rewards and end of an episode.

import loadMujoco from "@mujoco/mujoco";
import { fetched } from "./agent.js";

const FRAME_SKIP = 4;
const RESET_NOISE = 5e-3;
const LEAST_HEIGHT = 0.7;
const LARGEST_ANGLE = 0.2;
const LARGEST_STATE = 100;
const LARGEST_VELOCITY = 10;
const CONTROL_COST = 1e-3;
const MAX_STEPS = 1000;
const CAPSULE = 3; // mjGEOM_CAPSULE

export class Hopper {
  constructor(mujoco, model) {
    this.mujoco = mujoco;
    this.model = model;
    this.data = new mujoco.MjData(model);
    /** Seconds of simulated time a step. */
    this.dt = model.opt.timestep * FRAME_SKIP;
  }

  static async load(path) {
    const mujoco = await loadMujoco();
    return new Hopper(mujoco, mujoco.MjModel.from_xml_string(await (await fetched(path)).text()));
  }

  /** Starts an episode near the upright pose. Equal seeds start equal episodes. */
  reset(seed) {
    const random = randomNumbers(seed);
    const noise = () => RESET_NOISE * (2 * random() - 1);
    this.mujoco.mj_resetData(this.model, this.data);
    const { qpos, qvel } = this.data;
    qpos.forEach((value, i) => (qpos[i] = value + noise()));
    qvel.forEach((_, i) => (qvel[i] = noise()));
    this.mujoco.mj_forward(this.model, this.data);
    this.steps = 0;
    return this.#observation();
  }

  step(action) {
    const before = this.data.qpos[0];
    this.data.ctrl.set(action);
    for (let i = 0; i < FRAME_SKIP; i++) this.mujoco.mj_step(this.model, this.data);
    this.steps += 1;
    const healthy = this.#healthy();
    const cost = CONTROL_COST * action.reduce((sum, value) => sum + value * value, 0);
    const reward = (this.data.qpos[0] - before) / this.dt + (healthy ? 1 : 0) - cost;
    return {
      observation: this.#observation(),
      reward,
      terminated: !healthy,
      truncated: healthy && this.steps === MAX_STEPS,
    };
  }

  /** The body's capsules as lines with a width, in the plane of movement: [x, z] of both ends, and the radius. */
  capsules() {
    const { geom_xpos: at, geom_xmat: turned } = this.data;
    const { geom_type: type, geom_size: size } = this.model;
    return Array.from(type, (_, i) => i)
      .filter((i) => type[i] === CAPSULE)
      .map((i) => {
        const half = size[3 * i + 1];
        // The third column of its rotation is a capsule's axis.
        const [dx, dz] = [half * turned[9 * i + 2], half * turned[9 * i + 8]];
        const [x, z] = [at[3 * i], at[3 * i + 2]];
        return { ends: [[x - dx, z - dz], [x + dx, z + dz]], radius: size[3 * i] };
      });
  }

  get position() {
    return this.data.qpos[0];
  }

  #observation() {
    const { qpos, qvel } = this.data;
    const clip = (value) => Math.min(Math.max(value, -LARGEST_VELOCITY), LARGEST_VELOCITY);
    return [...qpos.subarray(1), ...Array.from(qvel, clip)];
  }

  #healthy() {
    const [, height, angle, ...joints] = this.data.qpos;
    const others = [angle, ...joints, ...this.data.qvel];
    return (
      height > LEAST_HEIGHT &&
      Math.abs(angle) < LARGEST_ANGLE &&
      others.every((value) => Math.abs(value) < LARGEST_STATE)
    );
  }
}

/** Numbers in [0, 1), the same for the same seed (splitmix32). */
export function randomNumbers(seed) {
  let state = seed | 0;
  return () => {
    state = (state + 0x9e3779b9) | 0;
    let mixed = Math.imul(state ^ (state >>> 16), 0x21f0aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
    return ((mixed ^ (mixed >>> 15)) >>> 0) / 2 ** 32;
  };
}
