"""The OpenAI Agents SDK with one tool, in the protocol that the first argument names: chat or responses."""

import asyncio
import subprocess
import sys

from agents import Agent, Runner, function_tool, set_default_openai_api, set_tracing_disabled


@function_tool
def bash(command: str) -> str:
    """Run a command in the repository and return what it prints."""
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    return f"{done.stdout}{done.stderr}\nexit status {done.returncode}"


async def main(protocol: str, task: str) -> None:
    set_tracing_disabled(True)
    set_default_openai_api("chat_completions" if protocol == "chat" else "responses")
    agent = Agent(name="fixer", instructions="You fix code.", tools=[bash])
    result = Runner.run_streamed(agent, task)
    async for _ in result.stream_events():
        pass
    print(result.final_output)


asyncio.run(main(*sys.argv[1:]))
