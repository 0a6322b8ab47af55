"""The model card of an agent on the Hugging Face Hub: what it is, how it scored, and a picture of its returns."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from aaren_rl import checkpoint
from aaren_rl.actor import Target
from aaren_rl.agents.decision_agent import DecisionAgent
from aaren_rl.checkpoint import AgentCard
from aaren_rl.errors import CheckpointError
from aaren_rl.figures import drawn
from aaren_rl.model import count_parameters

README, RESULT, PICTURE = "README.md", "result.json", "returns.png"
FILES = (README, RESULT, PICTURE)
"""Files beside an agent's own."""

TAGS = ("reinforcement-learning", "deep-reinforcement-learning", "offline-rl", "decision-transformer")

SOURCES = {
    "minari": "a Minari dataset",
    "d4rl": "a dataset of D4RL",
    "bundled": "roll-outs of aaren-rl's bundled policies and scripted experts",
    "arrays": "the author's own arrays",
}
"""Sources of data in words; others are named by their format."""

CONVERTED = "transformers"
"""Source of agents that `from_transformers` made, of whose training nothing is known."""

NEEDED = (
    *("mean", "std", "ci95_return", "normalized_score", "ci95", "success_rate", "returns", "episodes", "seeds"),
    *("target", "environment", "environment_kwargs", "time_limit", "wrappers", "reference", "reference_reason"),
    "versions",
)
"""Entries of a result that a card tells of."""

IN_ENVIRONMENT = """
import aaren_rl
from aaren_rl.envs.environments import environment_of, make

agent = aaren_rl.load("{repo}")
env = make(environment_of(agent.card))
observation, _ = env.reset(seed=0)
agent.reset()
action, done, total = agent.act(observation), False, 0.0
while not done:
    observation, reward, terminated, truncated, _ = env.step(action)
    total, done = total + float(reward), terminated or truncated
    action = None if done else agent.act(observation, reward)
print(f"return {{total:.1f}}")
"""

WITHOUT_ENVIRONMENT = """
import aaren_rl

agent = aaren_rl.load("{repo}")
agent.reset()
# Then agent.act(observation), and from the second step on agent.act(observation, reward).
"""


def write(out: Path, folder: Path, origin: Path | None, repo: str, licence: str | None) -> list[str]:
    """Writes an agent's card, and what belongs to it, into a folder.

    Args:
        out: to write into.
        folder: of the agent.
        origin: folder that this one is a copy of; the result of its run lies beside it. None for no run.
        repo: name on the Hub.
        licence: as the Hub names it; None for none.

    Returns:
        Names of the files.

    Raises:
        CheckpointError: the agent cannot be read.
    """
    agent = DecisionAgent.load(folder)
    card = agent.card
    figures = None if origin is None else result_of(origin, card, checkpoint.weights_digest(folder))
    written = [README]
    if figures is not None:
        (out / RESULT).write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
        draw_returns(out / PICTURE, figures)
        written += [RESULT, PICTURE]
    text = "\n\n".join(
        [
            f"---\n{_metadata(card, repo, licence, figures)}\n---",
            f"# {repo.rpartition('/')[2]}",
            _introduction(agent),
            f"## Use\n\n{_use(card, repo)}",
            f"## Scores\n\n{_scores(card, figures)}",
            f"## Data and licence\n\n{_origins(card, licence, figures)}",
        ]
    )
    (out / README).write_text(text + "\n", "utf-8")
    return written


def result_of(folder: Path, card: AgentCard, weights: str | None) -> dict[str, Any] | None:
    """The newest result of an agent's evaluation, from result.json of its run, or the results that it replaced.

    Warns where the run has results, and none of this agent.

    Args:
        folder: of the agent, in that of its run.
        card: of the agent.
        weights: digest of the agent's weights.
    """
    run = folder.resolve().parent
    replaced = [path for path in run.glob("result-*.json") if path.stem.removeprefix("result-").isdecimal()]
    replaced.sort(key=lambda path: int(path.stem.removeprefix("result-")), reverse=True)
    reasons = []
    for file in (run / RESULT, *replaced):
        if not file.exists():
            continue
        try:
            found, reason = _figures_of(checkpoint.read_json(file), folder.resolve().name, card, weights)
        except CheckpointError as error:
            found, reason = None, str(error)
        if found is not None:
            return found
        reasons.append(f"{file} {reason}")
    if reasons:
        warnings.warn(f"the model card has no scores: {reasons[0]}", RuntimeWarning, stacklevel=4)
    return None


def _figures_of(
    result: dict[str, Any], name: str, card: AgentCard, weights: str | None
) -> tuple[dict[str, Any] | None, str]:
    """The figures of a result that are of an agent, or why there are none."""
    # Fine-tuning calls its last agent so.
    names = {name} | ({"after"} if name == "last" else set())
    for figures in (result, result.get("best")):
        if not isinstance(figures, dict) or figures.get("checkpoint") not in names:
            continue
        if figures.get("updates") != card.updates or not all(needed in figures for needed in NEEDED):
            continue
        if (reason := _mismatch(figures, card, weights)) is not None:
            return None, reason
        return {name: value for name, value in figures.items() if name not in ("best", "before")}, ""
    of = f"is of {result.get('checkpoint')} after {result.get('updates')} updates, and not of this agent"
    return None, of + _evaluate_again(card)


def _evaluate_again(card: AgentCard) -> str:
    return f"; evaluate the agent again with scripts/evaluate.py, --acting {card.acting}"


def _mismatch(figures: dict[str, Any], card: AgentCard, weights: str | None) -> str | None:
    """How a result and an agent differ; None if the result is the agent's."""
    again = _evaluate_again(card)
    if "weights_sha256" not in figures:
        return f"does not name the weights that were evaluated, as results of earlier versions do not{again}"
    if figures["weights_sha256"] != weights:
        return f"is of other weights than those of this agent{again}"
    if figures.get("acting") != card.acting:
        return f"is of acting by {figures.get('acting')}, and this agent acts by {card.acting}{again}"
    return None


def draw_returns(path: Path, figures: dict[str, Any]) -> None:
    """Draws the returns of all episodes of an evaluation, their mean, and the target."""
    with drawn(path, 6.0, 3.2) as figure:
        axes = figure.subplots()
        axes.hist(figures["returns"], bins=min(30, max(5, len(figures["returns"]) // 3)), color="C0", alpha=0.6)
        axes.axvline(figures["mean"], color="C0", label=f"mean {figures['mean']:.4g}")
        if isinstance(figures["target"], int | float):
            axes.axvline(figures["target"], color="grey", linestyle="--", label=f"target {figures['target']:.4g}")
        axes.set(xlabel="return", ylabel="episodes")
        axes.legend(frameon=False)
        axes.set_title(f"{figures['episodes']} episodes of {figures['environment']}", fontsize=9)


def _metadata(card: AgentCard, repo: str, licence: str | None, figures: dict[str, Any] | None) -> str:
    environment = None if card.environment is None else card.environment.id
    found: list[EvalResult] = []
    if figures is not None:
        about = {
            "task_type": "reinforcement-learning",
            "task_name": "reinforcement-learning",
            "dataset_type": figures["environment"],
            "dataset_name": figures["environment"],
        }
        mean = f"{figures['mean']:.2f} +/- {figures['std']:.2f}"
        found.append(EvalResult(**about, metric_type="mean_reward", metric_name="mean_reward", metric_value=mean))
        for name, label in (("normalized_score", f"({figures['reference']})"), ("success_rate", "")):
            if figures[name] is not None:
                called = f"{name} {label}".strip()
                found.append(
                    EvalResult(**about, metric_type=name, metric_name=called, metric_value=round(figures[name], 4))
                )
    data = ModelCardData(
        library_name="aaren-rl",
        license=licence,
        pipeline_tag="reinforcement-learning",
        tags=[*TAGS, *([] if environment is None else [environment])],
        model_name=repo.rpartition("/")[2],
        eval_results=found or None,
    )
    return data.to_yaml()


def _introduction(agent: DecisionAgent) -> str:
    card, config = agent.card, agent.model.config
    purpose = "without a recorded environment" if card.environment is None else f"for {_code(card.environment)}"
    size = f"{count_parameters(agent.model):,} parameters"
    if card.source == CONVERTED:
        made = f"It was converted from Hugging Face's transformers and has {size}."
    else:
        made = f"It has {size} and was trained for {card.updates:,} updates."
    target = f" Its default target return is {_target(card.target_returns[0])}." if config.return_to_go else ""
    return (
        f"An agent of aaren-rl {purpose}: a Decision Transformer whose attention is the mixer {_code(config.mixer)}. "
        f"{made} {_memory(agent)}{target}"
    )


def _memory(agent: DecisionAgent) -> str:
    """What the agent keeps of an episode, in a sentence."""
    acting = agent.acting
    if acting.is_window:
        return f"It keeps the last {acting.steps} steps and runs all of them through the model at every step."
    reset = f", which is emptied every {acting.steps} steps" if acting.mode == "reset" else ""
    size = {
        "constant": "of constant size",
        "window": "that holds a window of past steps",
        "growing": "that grows with the episode",
    }
    # Emptied, a state that grows is a window too.
    memory = "growing" if reset and not agent.model.fixed_size else agent.memory
    return f"It acts from a state {size[memory]}{reset}."


def _use(card: AgentCard, repo: str) -> str:
    code = (WITHOUT_ENVIRONMENT if card.environment is None else IN_ENVIRONMENT).format(repo=repo)
    return f"```python{code}```\n\nThe files are safetensors and JSON, checked by digests; loading them runs no code."


def _scores(card: AgentCard, figures: dict[str, Any] | None) -> str:
    if figures is None:
        return "No evaluation of these weights was recorded."
    mean = f"{figures['mean']:.2f} +- {figures['std']:.2f}"
    rows = [("return, mean and standard deviation", mean + _interval(figures["ci95_return"], 2))]
    if figures["normalized_score"] is not None:
        score = f"{figures['normalized_score']:.1f}{_interval(figures['ci95'], 1)}"
        rows.append(("normalised score, 0 = random, 100 = expert", f"{score}, by {_code(figures['reference'])}"))
    if figures["success_rate"] is not None:
        rows.append(("success rate", f"{100 * figures['success_rate']:.0f}%"))
    played = [figures["environment"], *(f"{name}={value}" for name, value in figures["environment_kwargs"].items())]
    seeds = figures["seeds"]
    rows += [
        ("environment", ", ".join(map(_code, [*played, *figures["wrappers"]]))),
        ("an episode is limited by", figures["time_limit"] or "nothing that is known"),
        ("episodes", f"{figures['episodes']} whole ones; environments are seeded {seeds[0]} to {seeds[-1]}"),
        ("return asked for", _target(figures["target"])),
        ("acts by", _code(figures.get("acting", card.acting))),
        *((name, figures[name]) for name in ("temperature", "renew") if figures.get(name)),
        ("versions", ", ".join(f"{name} {version}" for name, version in figures["versions"].items())),
    ]
    reason = figures["reference_reason"]
    last = "It is the agent after the last update, which no roll-out chose. "
    chosen = {
        "best": "It is the agent that evaluated best in training, so roll-outs of this environment chose it. ",
        **{"last": last, "after": last},
    }
    table = "\n".join(f"| {name} | {_plain(value)} |" for name, value in rows)
    return (
        f"| | |\n|---|---|\n{table}\n\n{chosen.get(figures['checkpoint'], '')}Brackets hold 95% bootstrap intervals of "
        "the mean over the episodes of this one training; they say nothing of other seeds. "
        f"{f'Reference returns: {_plain(reason)}.' if reason else ''}\n\n"
        f"![Returns of the evaluation]({PICTURE})\n\n[{RESULT}]({RESULT}) has all of it, episode by episode."
    )


def _origins(card: AgentCard, licence: str | None, figures: dict[str, Any] | None) -> str:
    given = f"The agent's licence is {_code(licence)}." if licence else "The author gave the agent no licence."
    if card.source == CONVERTED:
        return (
            f"The weights are those of {_code(card.dataset_id)}, a Decision Transformer of Hugging Face's "
            "transformers. This card does not record which data they were trained on, nor the licences of that model "
            f"and of the data. {given}"
        )
    source = SOURCES.get(card.source, f"a file in the format {_code(card.source)}")
    count = "" if figures is None or "data_episodes" not in figures else f", {figures['data_episodes']:,} episodes"
    return (
        f"Trained on {_code(card.dataset_id)}{count}: {source}. This card does not record the licence of the data; "
        f"their source states it. {given}"
    )


def _interval(bounds: list[float] | None, digits: int) -> str:
    return "" if bounds is None else f" [{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"


def _target(target: Target) -> str:
    return target if isinstance(target, str) else f"{target:.5g}"


def _plain(value: object) -> str:
    """Text of a file that ends no cell of a table and no line."""
    return checkpoint.shortened(str(value)).replace("|", "/").replace("<", "&lt;")


def _code(text: object) -> str:
    """A name of a file, as Markdown shows it word by word."""
    return f"`{checkpoint.shortened(str(text)).replace('`', chr(39))}`"
