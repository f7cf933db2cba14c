"""LangChain's agent (a LangGraph) with one tool; the first argument names the protocol: chat, responses or messages."""

import subprocess
import sys

from langchain.agents import create_agent
from langchain.chat_models import init_chat_model


def bash(command: str) -> str:
    """Run a command in the repository and return what it prints."""
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    return f"{done.stdout}{done.stderr}\nexit status {done.returncode}"


protocol, task = sys.argv[1:]
if protocol == "messages":
    model = init_chat_model("claude-sonnet-4-5", model_provider="anthropic")
else:
    model = init_chat_model("gpt-5.2", model_provider="openai", use_responses_api=protocol == "responses")
for state in create_agent(model, [bash], system_prompt="You fix code.").stream(
    {"messages": [("user", task)]}, stream_mode="values"
):
    last = state["messages"][-1]
print(last.text)
