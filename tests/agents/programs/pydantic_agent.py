"""A pydantic-ai agent with one tool; the first argument names its model, e.g. `openai-chat:gpt-5.2`."""

import subprocess
import sys

from pydantic_ai import Agent

model, task = sys.argv[1:]
agent = Agent(model, instructions="You fix code.")


@agent.tool_plain
def bash(command: str) -> str:
    """Run a command in the repository and return what it prints."""
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    return f"{done.stdout}{done.stderr}\nexit status {done.returncode}"


print(agent.run_sync(task).output)
