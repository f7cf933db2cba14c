"""A smolagents ToolCallingAgent with one tool, over the OpenAI client."""

import os
import subprocess
import sys

from smolagents import OpenAIModel, ToolCallingAgent, tool


@tool
def bash(command: str) -> str:
    """Run a command in the repository and return what it prints.

    Args:
        command: The command.
    """
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    return f"{done.stdout}{done.stderr}\nexit status {done.returncode}"


model = OpenAIModel("gpt-5.2", api_base=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"])
print(ToolCallingAgent(tools=[bash], model=model).run(sys.argv[1]))
