"""The agents and frameworks people use, each through the gateway: only the base URL changes.

`test_gateway.py` runs this file in a process of its own: the libraries leave sockets and event loops behind.
"""

from __future__ import annotations

import json
import os
import subprocess
import time

import pytest

from test_gateway import ASK, KEY, TOOLS, make  # noqa: F401  (a fixture)

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks GitHub for prices
pytestmark = pytest.mark.filterwarnings("ignore")  # other people's deprecations


def call(command: str) -> dict:
    function = {"name": "bash", "arguments": json.dumps({"command": command})}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": f"c{time.time_ns()}", "type": "function", "function": function}],
    }


def completion(messages: list[dict]) -> dict:
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": i, "message": m, "finish_reason": "tool_calls"} for i, m in enumerate(messages)],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }  # fmt: skip


def test_mini_swe_agent_does_a_real_task_in_a_repository(make, tmp_path, monkeypatch):  # noqa: F811
    """The small model proposes a tool that does not exist at one step; the teacher takes that step; the task is solved."""
    monkeypatch.setenv("MSWEA_SILENT_STARTUP", "1")
    monkeypatch.setenv("MSWEA_GLOBAL_CONFIG_DIR", str(tmp_path / "config"))
    default = pytest.importorskip("minisweagent.agents.default")
    from minisweagent.environments.local import LocalEnvironment
    from minisweagent.models.litellm_model import LitellmModel

    world = make(route__router="verifier", route__threshold=0.3)
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "add.py").write_text("def add(a, b):\n    return a - b\n")
    subprocess.run("git init -q && git add . && git -c user.name=x -c user.email=x commit -qm x", shell=True, cwd=repository)
    plan = [
        "cat add.py",
        "sed -i 's/a - b/a + b/' add.py && python3 -c 'import add; assert add.add(2, 3) == 5' && git diff --stat",
        "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT",
    ]

    def step_of(body: dict) -> int:
        return sum(m["role"] == "assistant" for m in body["messages"])

    def small(body: dict) -> dict:
        good = call(plan[step_of(body)])
        if step_of(body) == 1:
            good["tool_calls"][0]["function"]["name"] = "edit_file"
        return completion([good] * body.get("n", 1))

    world.small.reply = small
    world.teacher.reply = lambda body: completion([call(plan[step_of(body)])])
    model = LitellmModel(
        model_name="openai/r2v", cost_tracking="ignore_errors", model_kwargs={"api_base": f"{world.url}/v1", "api_key": KEY}
    )
    agent = default.DefaultAgent(
        model,
        LocalEnvironment(cwd=str(repository)),
        system_template="You fix code.",
        instance_template="Fix add.py: {{task}}",
    )
    done = agent.run("add must add")
    assert done["exit_status"] == "Submitted"
    assert "a + b" in (repository / "add.py").read_text()
    assert [row[0] for row in world.rows("source")] == ["slm", "teacher", "slm"]
    assert len({row[0] for row in world.rows("session")}) == 1  # one session, from its fingerprint


def test_langchain_with_tools_streaming_and_not(make):  # noqa: F811
    langchain = pytest.importorskip("langchain_openai")
    world = make()
    chat = langchain.ChatOpenAI(model="r2v", base_url=f"{world.url}/v1", api_key=KEY, max_retries=0)
    bound = chat.bind_tools(TOOLS)
    whole = bound.invoke([("system", "be brief"), ("user", "look for it")])
    assert whole.tool_calls[0]["name"] == "look"
    parts = None
    for part in bound.stream([("user", "look for it")]):
        parts = part if parts is None else parts + part
    assert parts.tool_calls[0]["name"] == "look" and set(parts.tool_calls[0]["args"]) == {"where"}


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_the_openai_agents_sdk_runs_a_tool_loop(make, api):  # noqa: F811
    agents = pytest.importorskip("agents")
    import openai

    world = make()
    agents.set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key=KEY, max_retries=0)
    kind = agents.OpenAIChatCompletionsModel if api == "chat" else agents.OpenAIResponsesModel
    looked = []

    @agents.function_tool
    def look(where: str) -> str:
        """Look somewhere."""
        looked.append(where)
        return "a red 1"

    agent = agents.Agent(
        name="x", instructions="look for it", tools=[look], model=kind(model="r2v:teacher", openai_client=client)
    )
    result = agents.Runner.run_sync(agent, "look for the red value", max_turns=8)
    assert len(looked) == 3 and "Done after 3 steps" in result.final_output
    assert all(row[0] == "teacher" for row in world.rows("source"))


@pytest.mark.parametrize("stream", [False, True])
def test_litellm_with_tools(make, stream):  # noqa: F811
    litellm = pytest.importorskip("litellm")
    world = make()
    answer = litellm.completion(
        model="openai/r2v", api_base=f"{world.url}/v1", api_key=KEY, messages=ASK, tools=TOOLS, num_retries=0, stream=stream
    )
    if stream:
        answer = litellm.stream_chunk_builder(list(answer))
    assert answer.choices[0].message.tool_calls[0].function.name == "look"


def test_litellm_in_anthropics_protocol(make):  # noqa: F811
    litellm = pytest.importorskip("litellm")
    world = make()
    answer = litellm.completion(
        model="anthropic/r2v", api_base=world.url, api_key=KEY, messages=ASK, tools=TOOLS, num_retries=0, max_tokens=50
    )
    assert answer.choices[0].message.tool_calls[0].function.name == "look"
