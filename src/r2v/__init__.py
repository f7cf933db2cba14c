"""r2v: step-level routing for LLM agents. A cheap model acts; at every step a router decides whether to escalate.

Importing this package and deciding need NumPy and msgspec alone.
"""

from r2v.core.agent import AgentModels, Routed, Solo
from r2v.core.loop import run_episode
from r2v.core.types import Action, Candidate, Context, Decision, Episode, Features, Memory, Observation, Step, Task, Usage
from r2v.routers import decide, load_router

__version__ = "0.2.0"

__all__ = [
    "Action", "AgentModels", "Candidate", "Context", "Decision", "Episode", "Features", "Memory", "Observation", "Routed",
    "Solo", "Step", "Task", "Usage", "__version__", "decide", "load_router", "run_episode",
]  # fmt: skip
