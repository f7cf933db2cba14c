"""r2v: step-level routing for LLM agents. A cheap model acts; a calibrated risk decides when to ask the teacher.

Importing this package, deciding and serving need NumPy only, never torch.
"""

from r2v.core.agent import AgentModels, Routed, Solo
from r2v.core.loop import run_episode
from r2v.core.types import Action, Candidate, Context, Decision, Episode, Features, Memory, Observation, Step, Task, Usage

__version__ = "0.1.0"

__all__ = [
    "Action",
    "AgentModels",
    "Candidate",
    "Context",
    "Decision",
    "Episode",
    "Features",
    "Memory",
    "Observation",
    "Routed",
    "Solo",
    "Step",
    "Task",
    "Usage",
    "__version__",
    "run_episode",
]
