"""The step of an agent as one C header and one C file."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from aaren_rl.checkpoint import shortened
from aaren_rl.errors import InvalidInput
from aaren_rl.model.inputs_stepper import RETURN_TO_GO, TIMESTEP
from aaren_rl.stepping.c import graph
from aaren_rl.stepping.c.arrays import TYPES, Array
from aaren_rl.stepping.c.operations import literal
from aaren_rl.stepping.c.writer import Writer
from aaren_rl.stepping.model_stepper import ModelStepper

PRODUCT = """
static void multiply_{type}({type} *out, const {type} *in, const {type} *weight, int rows, int inner, int columns)
{{
    for (int row = 0; row < rows; ++row, out += columns, in += inner) {{
        int k = 0;
        for (; k + 4 <= inner; k += 4) {{
            const {type} *w = weight + (size_t)k * columns;
            const {type} a = in[k], b = in[k + 1], c = in[k + 2], d = in[k + 3];
            for (int j = 0; j < columns; ++j)
                out[j] += a * w[j] + b * w[columns + j] + c * w[2 * columns + j] + d * w[3 * columns + j];
        }}
        for (; k < inner; ++k)
            for (int j = 0; j < columns; ++j)
                out[j] += in[k] * weight[(size_t)k * columns + j];
    }}
}}
"""
"""Adds a product to what is in `out`; four rows of the weight at a time, so that `out` is read and written less."""

PRODUCT_INT8 = """
static void multiply_int8(float *out, const float *in, const int8_t *weight, const float *scale, int rows, int inner,
                          int columns)
{{
    int16_t whole[{longest}];
    for (int row = 0; row < rows; ++row, out += columns, in += inner) {{
        float top = 0.0f, spoilt = 0.0f;
        for (int k = 0; k < inner; ++k) {{
            top = fabsf(in[k]) > top ? fabsf(in[k]) : top;
            spoilt += in[k] * 0.0f;
        }}
        const float unit = top > 1e-30f ? 4095.0f / top : 0.0f;
        for (int k = 0; k < inner; ++k) {{
            const float scaled = in[k] * unit;
            whole[k] = scaled >= -4096.0f && scaled <= 4096.0f ? (int16_t)(scaled + (scaled < 0.0f ? -0.5f : 0.5f)) : 0;
        }}
        for (int j = 0; j < columns; ++j) {{
            const int8_t *w = weight + (size_t)j * inner;
            int32_t sum = 0;
            for (int k = 0; k < inner; ++k)
                sum += whole[k] * (int16_t)w[k];
            out[j] = (float)sum * scale[j] * (top / 4095.0f) + spoilt;
        }}
    }}
}}
"""
"""Weights of 8 bits and inputs of 13: products of whole numbers, whose sums hold some 4,000 inputs in 32 bits. What is
not finite spoils all outputs, as it does in real numbers."""

REMAINDER = """
static {type} remainder_{type}({type} number, {type} divisor)
{{
    const {type} rest = {fmod}(number, divisor);
    return rest != 0 && (rest < 0) != (divisor < 0) ? rest + divisor : rest;
}}
"""

INSIDE = """
static int64_t inside(int64_t index, int64_t length)
{
    return index < 0 ? 0 : index < length ? index : length - 1;
}
"""

NORM = """
static void normalise_{type}({type} *out, const {type} *in, const {type} *scale, const {type} *shift, int rows,
                             int width, {type} eps)
{{
    for (int row = 0; row < rows; ++row, out += width, in += width) {{
        {type} mean = 0, variance = 0;
        for (int j = 0; j < width; ++j)
            mean += in[j];
        mean /= ({type})width;
        for (int j = 0; j < width; ++j)
            variance += (in[j] - mean) * (in[j] - mean);
        const {type} factor = 1 / {sqrt}(variance / ({type})width + eps);
        for (int j = 0; j < width; ++j)
            out[j] = (in[j] - mean) * factor * scale[j] + shift[j];
    }}
}}
"""

HEADER = """/* {title}

   Generated. C99; needs libm; allocates nothing and has no state of its own. What is not finite makes actions that are
   not; numbers outside of a space make actions without meaning. */
#ifndef AGENT_H
#define AGENT_H

#define AGENT_OBSERVATION {observation} /* numbers of an observation */
#define AGENT_ACTION {action} /* numbers of an action */
#define AGENT_STATE {state} /* numbers of the state */

typedef struct {{
    double values[AGENT_STATE];
}} agent_state;

/* Starts an episode. target: return to ask for{auto}. */
void agent_reset(agent_state *state, float target);

/* Chooses the next action. reward: of the action before, 0 at the first step of an episode.
   Observation, reward and action are in the environment's units. */
void agent_step(agent_state *state, const float *observation, float reward, float *action);

/* The same for environments one after another: so many states, rows of observations, rewards and rows of actions. */
void agent_steps(int count, agent_state *states, const float *observations, const float *rewards, float *actions);

#endif
"""

SOURCE = """#include "agent.h"

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
{constants}
{functions}
static const double start[AGENT_STATE] = {{{start}}};

void agent_reset(agent_state *state, float target)
{{
    for (int i = 0; i < AGENT_STATE; ++i)
        state->values[i] = start[i];
    state->values[{target}] = target;
}}

void agent_step(agent_state *state, const float *observation, float reward, float *action)
{{
    const float *const rewards = &reward;
    double *const before = state->values;
{body}
}}

void agent_steps(int count, agent_state *states, const float *observations, const float *rewards, float *actions)
{{
    for (int i = 0; i < count; ++i)
        agent_step(states + i, observations + (size_t)i * AGENT_OBSERVATION, rewards[i],
                   actions + (size_t)i * AGENT_ACTION);
}}
"""


FORGET = """    if (before[{timestep}] > 0 && fmod(before[{timestep}], {every}) == 0)
        for (int i = {mixed}; i < AGENT_STATE; ++i)
            before[i] = start[i];
"""


class Code(NamedTuple):
    """A step in C.

    Attributes:
        header: text of agent.h.
        source: text of agent.c.
        weight_bytes: of the constants.
        scratch_bytes: of memory on the stack that a step needs for its temporaries.
    """

    header: str
    source: str
    weight_bytes: int
    scratch_bytes: int


def generate(
    step: ModelStepper, title: str, int8: bool = False, reset_every: int = 0, longest: int | None = None
) -> Code:
    """The C of a step.

    Args:
        step: to write; whatever mixers it holds.
        title: a line about the agent.
        int8: store the weights of large products in 8 bits, with a scale for each output.
        reset_every: steps after which the mixers' states are emptied; 0 for never.
        longest: steps of the longest episode that the model knows; None for any.

    Raises:
        InvalidInput: observations have images, or the step has an operation that is not written in C.
    """
    if step.observation_space.images():
        raise InvalidInput("observations with images are not written in C; export the agent to ONNX")
    step = step.cpu()
    example = step.inputs.observation.examples(1, torch.Generator().manual_seed(0))
    assert isinstance(example, Tensor)
    program = graph.exported(_Flat(step), (example.reshape(1, -1), torch.zeros(1), step.start[None].clone()))
    writer = Writer(int8)
    action, after = graph.write(program, ("observation", "rewards", "before"), writer)
    _hand_out(writer, action, "action", "float")
    _hand_out(writer, after, "before", "double")
    written = _written(writer)
    text = written.body
    sizes = {"observation": example.numel(), "action": action.size, "state": len(step.start)}
    if reset_every:
        text = FORGET.format(timestep=TIMESTEP, every=reset_every, mixed=step.mixed) + text
    notes = f"\n   Empties its memory every {reset_every} steps." if reset_every else ""
    notes += f"\n   Knows episodes of {longest} steps at most." if longest else ""
    auto = ", or INFINITY for what is in reach" if step.reach is not None else ""
    return Code(
        HEADER.format(title=_comment(title) + notes, auto=auto, **sizes),
        SOURCE.format(
            constants=written.constants,
            functions=written.functions,
            start=", ".join(literal(float(value), "double") for value in step.start),
            target=RETURN_TO_GO,
            body=text,
        ),
        written.weight_bytes,
        written.scratch_bytes,
    )


class _Written(NamedTuple):
    """What a writer wrote, as the parts of a file."""

    constants: str
    functions: str
    body: str
    weight_bytes: int
    scratch_bytes: int


def _written(writer: Writer) -> _Written:
    body, scratch = writer.body()
    used = {name: tensor for name, tensor in writer.constants.items() if f"{name}[" in body or _names(body, name)}
    functions = [PRODUCT.format(type=kind) for kind in ("float", "double") if f"multiply_{kind}(" in body]
    if writer.longest:
        functions.append(PRODUCT_INT8.format(longest=writer.longest))
        scratch += 2 * writer.longest
    functions += [
        NORM.format(type=kind, sqrt="sqrtf" if kind == "float" else "sqrt")
        for kind in ("float", "double")
        if f"normalise_{kind}(" in body
    ]
    functions += [
        REMAINDER.format(type=kind, fmod="fmodf" if kind == "float" else "fmod")
        for kind in ("float", "double")
        if f"remainder_{kind}(" in body
    ]
    functions += [INSIDE] if "inside(" in body else []
    return _Written(
        "\n".join(_constant(name, tensor) for name, tensor in used.items()),
        "".join(functions),
        "\n".join(f"    {line}" if line else line for line in body.splitlines()),
        sum(tensor.numel() * tensor.element_size() for tensor in used.values()),
        scratch,
    )


def file(writer: Writer, head: str, signature: str) -> str:
    """A file of C with one function that does what was written.

    Args:
        writer: what wrote it.
        head: lines before everything.
        signature: of the function.
    """
    written = _written(writer)
    includes = "".join(f"#include <{name}.h>\n" for name in ("stdbool", "stddef", "stdint"))
    return f"{head}{includes}{written.constants}\n{written.functions}\n{signature}\n{{\n{written.body}\n}}\n"


class _Flat(nn.Module):
    """A step of one environment whose observation is a row of numbers."""

    def __init__(self, step: ModelStepper) -> None:
        super().__init__()
        self.step, self.shape = step, step.observation_space.packed_shapes()

    def forward(self, observation: Tensor, reward: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        action, after = self.step(observation.reshape(1, *self.shape), reward, state)
        return action, after


def _hand_out(writer: Writer, array: Array, place: str, type: str) -> None:
    """Copies a result to where the caller reads it."""
    flat = writer.whole(array).reshaped((array.size,))
    writer.loop(flat.shape, lambda at: f"{place}[{at[0]}] = ({type}){flat.at(at)};")


def _comment(text: str) -> str:
    """A text that neither ends a comment nor begins one."""
    return shortened(text).replace("*/", "* /").replace("/*", "/ *")


def _names(body: str, name: str) -> bool:
    """True if a text names a constant other than by an index."""
    return any(f"{name}{end}" in body for end in (",", ")", " "))


def _constant(name: str, tensor: Tensor) -> str:
    kind = {**TYPES, torch.int8: "int8_t"}[tensor.dtype]
    numbers = [literal(value, "int64_t" if kind == "int8_t" else kind) for value in tensor.reshape(-1).tolist()]
    lines = [", ".join(numbers[first : first + 8]) for first in range(0, len(numbers), 8)]
    body = ",\n    ".join(lines)
    return f"\nstatic const {kind} {name}[{max(1, tensor.numel())}] = {{\n    {body}\n}};"
