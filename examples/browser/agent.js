// An exported agent (scripts/export.py --to onnx), stepped by onnxruntime's WebAssembly build.

import * as ort from "onnxruntime-web";

ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
// Threads need headers that a plain file server does not send, and one is the fastest for models of this size.
ort.env.wasm.numThreads = 1;

const FORMAT = 5;

export class Agent {
  /**
   * @param {object} card - contents of export.json
   * @param {ort.InferenceSession} session - of agent.onnx
   */
  constructor(card, session) {
    this.card = card;
    this.session = session;
    this.start = Float64Array.from(card.state_start);
    const [mode, steps] = card.acting.split(":");
    this.forgetsEvery = mode === "reset" ? Number(steps) : Infinity;
    this.reset(this.defaultTarget);
  }

  /** Loads the folder of an export; throws an Error that says what to do where it cannot. */
  static async load(folder) {
    const card = await (await fetched(`${folder}/export.json`)).json();
    if (card.format !== FORMAT) {
      throw new Error(`${folder} has format ${card.format}; this page reads ${FORMAT}. Export the agent again.`);
    }
    for (const space of [card.observation_space, card.action_space]) {
      if (space.type !== "box") throw new Error(`${folder} has a space of type ${space.type}; this page takes vectors.`);
    }
    const graph = await (await fetched(`${folder}/agent.onnx`)).arrayBuffer();
    return new Agent(card, await ort.InferenceSession.create(graph));
  }

  /** Target return by default; Infinity for what is in reach. */
  get defaultTarget() {
    const target = this.card.target_returns[0];
    return target === "auto" ? Infinity : target;
  }

  /** Return-to-go before the reward of the last action. */
  get returnToGo() {
    return this.state[this.card.return_to_go_at];
  }

  get stateBytes() {
    return this.state.byteLength;
  }

  /** Starts an episode with a target return. */
  reset(target) {
    // All that the agent carries: return-to-go, timestep, previous action, and what the mixers remember.
    this.state = this.start.slice();
    this.timestep = 0;
    this.ask(target, 0);
  }

  /**
   * Sets what is left to earn from now on.
   * @param {number} target - return of all rewards that are still to come
   * @param {number} reward - of the last action, which the next step takes off
   */
  ask(target, reward) {
    this.state[this.card.return_to_go_at] = target + reward;
  }

  /**
   * The next action.
   * @param {ArrayLike<number>} observation - in the environment's units
   * @param {number} reward - of the action before; 0 at the first step of an episode
   * @returns {Promise<Float32Array>}
   */
  async act(observation, reward) {
    const { longest_episode: longest } = this.card;
    if (longest !== null && this.timestep >= longest) {
      throw new Error(`This agent knows episodes of at most ${longest} steps.`);
    }
    const { action, new_state: state } = await this.#run(observation, reward);
    if (!action.data.every(Number.isFinite)) throw new Error("The agent's action is no number. Export it again.");
    this.state = state.data;
    this.timestep += 1;
    return action.data;
  }

  /** The action that an observation would get now; the state stays as it is. */
  async consider(observation, reward) {
    return (await this.#run(observation, reward)).action.data;
  }

  /**
   * Largest difference between the actions here and those of the agent in Python at the same observations.
   * @param {{observations: number[][], rewards: number[], actions: number[][]}} episode
   */
  async compare({ observations, rewards, actions }) {
    this.reset(this.defaultTarget);
    let largest = 0;
    for (let t = 0; t < observations.length; t++) {
      const action = await this.act(observations[t], rewards[t]);
      // A NaN has to count: Math.max keeps it.
      actions[t].forEach((value, i) => (largest = Math.max(largest, Math.abs(value - action[i]))));
    }
    return largest;
  }

  #run(observation, reward) {
    return this.session.run({
      observation: new ort.Tensor("float32", Float32Array.from(observation), [1, observation.length]),
      reward: new ort.Tensor("float32", Float32Array.of(reward), [1]),
      state: new ort.Tensor("float64", this.#before(), [1, this.state.length]),
    });
  }

  /** The state before the next step, in which an agent of "reset:STEPS" has forgotten when it is time. */
  #before() {
    if (this.timestep === 0 || this.timestep % this.forgetsEvery !== 0) return this.state;
    const { mixers_at: at } = this.card;
    return Float64Array.from([...this.state.subarray(0, at), ...this.start.subarray(at)]);
  }
}

/** A file of this page; an Error that says how to make it where it is missing. */
export async function fetched(path) {
  // Files of an earlier prepare.py in the browser's cache would be mixed with later ones.
  const response = await fetch(path, { cache: "no-cache" });
  if (!response.ok) {
    const how = "Run prepare.py with an agent for this tab: python prepare.py ../../runs/RUN/last";
    throw new Error(`${path} is missing (${response.status}). ${how}`);
  }
  return response;
}
