"""The environment that data name, without what no data may say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aaren_rl.data.environment_spec import EnvironmentSpec


def spec_from_data(saved: Mapping[str, Any]) -> EnvironmentSpec:
    """The environment that data name, without wrappers.

    The render mode is left out: whether a window opens is no matter of data.

    Args:
        saved: "id", and perhaps "kwargs", "max_episode_steps" and "wrappers", as `EnvironmentSpec.to_json` has them.

    Raises:
        InvalidInput: they are something else.
    """
    kwargs = saved.get("kwargs", {})
    if isinstance(kwargs, Mapping):
        kwargs = {name: value for name, value in kwargs.items() if name != "render_mode"}
    return EnvironmentSpec.from_json({"max_episode_steps": None, "wrappers": [], **saved, "kwargs": kwargs})
