"""How many answers of a small model an agent can use: tool calls that the server reports, and those that r2v reads in texts.

`python benchmarks/tool_text.py --base-url http://localhost:8080/v1 --model NAME [--answers FILE] [--timeout-s 300]` asks any
server of chat completions 50 fixed requests, each with the same five tools, greedily. Every one of them needs a tool. An
answer is usable if it has a tool call and each call fits the schema of an offered tool (by `jsonschema`, not by r2v); the
right tool is the one that the request needs. The same answers are counted twice, with `parse_tools: off` and `auto`. 10
further requests need no call: an answer to them that is one was the model's mistake, which shows once it is read.

`--answers` keeps the answers, one a line: what is there is not asked again.

Qwen2.5-Coder-Instruct, Q4_K_M, on llama.cpp's server (xllamacpp 2026.10.11549, its chat template, 28 November 2026); it
reported no call itself, and no invalid one was let through:

    model   usable: off  auto   right tool   calls where none was needed
    0.5B         0/50    25/50     20/50         3/10
    1.5B         0/50    41/50     36/50         3/10

What is left names tools that do not exist (run_tests, create_file), explains how one would call, is no JSON, or is an answer
without looking.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any

import jsonschema

from r2v.clients.openai import OpenAIClient
from r2v.clients.settings import ClientSettings
from r2v.clients.tool_text import OfferedTools, with_calls
from r2v.core.types import Usage
from r2v.messages.conversation import Request, parse
from r2v.messages.protocol import Reply

SYSTEM = "You are a coding agent in a repository. Use the tools to do what the user asks; call one tool at a time."


def tool(name: str, description: str, required: list[str], **properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


TEXT, INTEGER = {"type": "string"}, {"type": "integer", "minimum": 1}
TOOLS = [
    tool("read_file", "Read a text file.", ["path"], path=TEXT, first_line=INTEGER),
    tool("write_file", "Write a text file, replacing what is there.", ["path", "content"], path=TEXT, content=TEXT),
    tool("run_command", "Run a shell command and return what it prints.", ["command"], command=TEXT, timeout_s=INTEGER),
    tool("search_files", "Find lines that match a regular expression.", ["pattern"], pattern=TEXT, folder=TEXT),
    tool(
        "create_issue", "Open an issue in the tracker.", ["title", "body"],
        title=TEXT, body=TEXT, priority={"enum": ["low", "normal", "high"]},
    ),
]  # fmt: skip
ASKED = {
    "read_file": (
        "Show me what is in src/main.py.",
        "What does the README.md say?",
        "Open config/settings.yaml and tell me which port it sets.",
        "Read tests/test_parser.py from line 40 on.",
        "I need the contents of the Dockerfile.",
        "Look into package.json for the version.",
        "Which licence do we have? It is in the file LICENSE.",
        "Check whether .gitignore lists the build folder.",
        "Print docs/install.md.",
        "See what setup.cfg holds, beginning at line 10.",
    ),
    "write_file": (
        "Create a file hello.txt that holds the text hello.",
        "Write a Python script add.py with a function add(a, b) that returns a + b.",
        "Make an empty file src/__init__.py.",
        "Replace version.txt by 1.2.3.",
        "Put the lines build/ and dist/ into .gitignore.",
        'Write a JSON file config.json with {"debug": true, "port": 8080}.',
        "Save a shell script run.sh that prints the date.",
        "Create notes/todo.md with a list of two items: tests, docs.",
        "Write requirements.txt with numpy and pandas.",
        "Store the SQL query SELECT * FROM users in query.sql.",
    ),
    "run_command": (
        "Run the tests with pytest.",
        "How many lines has src/main.py? Use wc.",
        "Show the git log of the last five commits.",
        "Install the dependencies of requirements.txt with pip.",
        "Which Python version is installed?",
        "Run make build, and give it ten minutes.",
        "Delete the folder build.",
        "Is there a process that listens on port 8080?",
        "Start the linter: ruff check.",
        "What is the size of the folder data?",
    ),
    "search_files": (
        "Where is the function parse_config defined?",
        "Find all TODO comments in src.",
        "Which files import requests?",
        "Search for the class UserAccount.",
        "Does anything still use the word deprecated?",
        "Find every line that ends with a backslash in the folder scripts.",
        "Look for hard-coded IP addresses.",
        "Where do we catch a bare except?",
        "Search the folder tests for the string 'fixture'.",
        "Which files mention the environment variable DATABASE_URL?",
    ),
    "create_issue": (
        "Open an issue: the login page crashes on an empty password.",
        "Please file a bug that the CSV export drops the last row. It is urgent.",
        "Create a ticket to update the documentation of the API.",
        "Report that the build fails on Windows, with high priority.",
        "Note in the tracker that the cache is never cleared.",
        "Make an issue titled 'Slow start' with the body 'It takes 30 seconds to start.'",
        "File a low priority issue about the typo on the About page.",
        "Open an issue that asks for dark mode.",
        "We should track that test_upload is flaky; open an issue.",
        "Create an issue: memory grows without bound when a stream is left open.",
    ),
}
NOT_WANTED = (
    "Do not call any tool: which of your tools can change files?",
    "Explain in one sentence what a regular expression is.",
    "Do not search now. When would you use search_files rather than run_command?",
    "What is the capital of France? No tool is needed.",
    "Without running anything, say what `git status` does.",
    "Thank you, that is all for today.",
    "Show me an example of a JSON object with a name and an age.",
    "What is the difference between a list and a tuple in Python?",
    "Is it wise to use a bare except? Answer in one sentence.",
    "Write a haiku about compilers. Do not save it.",
)


def request_of(words: str) -> Request:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": words}]
    return parse(json.dumps({"messages": messages, "tools": TOOLS, "temperature": 0, "max_tokens": 300}).encode())


def calls_of(reply: Reply) -> list[tuple[str, str]]:
    functions = [call["function"] for call in reply.choice["message"].get("tool_calls") or []]
    return [(function["name"], function["arguments"]) for function in functions]


def fits(name: str, arguments: str) -> bool:
    """Whether an agent can execute a call."""
    schemas = {one["function"]["name"]: one["function"]["parameters"] for one in TOOLS}
    try:
        return name in schemas and jsonschema.Draft202012Validator(schemas[name]).is_valid(json.loads(arguments))
    except ValueError:
        return False


async def answers(args: argparse.Namespace) -> dict[str, Reply]:
    """The answer to each request, of the file or of the server."""
    wanted = [words for several in ASKED.values() for words in several] + list(NOT_WANTED)
    known = {}
    if args.answers and args.answers.exists():
        for line in args.answers.read_text().splitlines():
            row = json.loads(line)
            known[row["request"]] = Reply(row["choice"], row["usage"], "chat")
    settings = ClientSettings(
        base_url=args.base_url, model=args.model, timeout_s=args.timeout_s, total_s=args.timeout_s, parse_tools="off"
    )
    client = OpenAIClient(settings, "the model")
    start, used = time.monotonic(), Usage()
    for words in wanted:
        if words in known:
            continue
        draw = await client.draw(request_of(words), 1)
        known[words], used = draw.replies[0], used + draw.usage
        if args.answers:
            with args.answers.open("a") as file:
                row = {"request": words, "choice": known[words].choice, "usage": known[words].usage}
                file.write(json.dumps(row) + "\n")
    await client.close()
    print(f"asked {used.calls} requests in {time.monotonic() - start:.0f} s, {used.completion_tokens or 0} tokens written")
    return {words: known[words] for words in wanted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", default="default")
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--timeout-s", type=float, default=300.0)
    found = asyncio.run(answers(parser.parse_args()))
    print("parse_tools  usable  right tool  with an invalid call  calls where none was needed")
    for option in ("off", "auto"):
        usable = right = invalid = unwanted = 0
        for words, reply in found.items():
            read = with_calls(reply, OfferedTools.of(request_of(words))) if option == "auto" else reply
            calls = calls_of(read)
            if words in NOT_WANTED:
                unwanted += bool(calls)
                continue
            valid = all(fits(*call) for call in calls)
            usable += bool(calls) and valid
            invalid += not valid
            right += bool(calls) and valid and words in ASKED[calls[0][0]]
        print(f"{option:11}  {usable:3}/50  {right:7}/50  {invalid:20}  {unwanted:24}/10")


if __name__ == "__main__":
    main()
