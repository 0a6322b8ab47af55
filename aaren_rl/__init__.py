"""Offline reinforcement learning with agents that train in parallel and act by stepping a state of constant size.

import aaren_rl

agent = aaren_rl.fit("hopper-medium", preset="quick")
agent = aaren_rl.load("runs/hopper-medium/last")
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aaren_rl.agents.hub import push_to_hub as push_to_hub
    from aaren_rl.core import RecurrentCore as RecurrentCore
    from aaren_rl.data.trajectories import Episode as Episode
    from aaren_rl.data.trajectories import Trajectories as Trajectories
    from aaren_rl.experiments.fit import fit as fit
    from aaren_rl.experiments.fit import load as load

__version__ = "0.1.0"

_PLACES = {
    "Episode": "aaren_rl.data.trajectories",
    "Trajectories": "aaren_rl.data.trajectories",
    "RecurrentCore": "aaren_rl.core",
    "fit": "aaren_rl.experiments.fit",
    "load": "aaren_rl.experiments.fit",
    "push_to_hub": "aaren_rl.agents.hub",
}

__all__ = ["Episode", "RecurrentCore", "Trajectories", "__version__", "fit", "load", "push_to_hub"]


# In a checkout that was not installed the other rooms lie beside this folder, not in it.
if not (Path(__file__).parent / "agents").is_dir():
    __path__.append(str(Path(__file__).parents[1]))


def __getattr__(name: str) -> Any:
    """Imports a name of the front door when it is first used, so that `import aaren_rl` stays light."""
    if name not in _PLACES:
        raise AttributeError(f"module 'aaren_rl' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return __all__
