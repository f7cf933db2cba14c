"""InterCode, SQL, Bash and Python: lines with "env", "model", "setting", "dataset", "task" and "steps" with their rewards.

Only the agents of "multiturn" settings were shown the reward of each turn, so only there it is part of what is read; that
of the last turn, which came when all was over, is not. SQL tasks of one data base stay together. The order of the tasks
does not show it (it is mixed), but MySQL's answers do: see `databases`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r2v.logs.files import objects
from r2v.logs.records import Recorded, Records, has, outcome_of, turns
from r2v.messages.conversation import Json

NAMED = re.compile(r"Table '(\w+)\.\w+' doesn't exist")
"""MySQL names the data base of a table that it does not find."""
LISTED = re.compile(r"\(b?'(\w+)',\)")
"""A row of the answer to SHOW TABLES."""
READ = re.compile(r"\b(?:FROM|JOIN)\s+`?(\w+)", re.IGNORECASE)
"""A table that a query reads."""


def episodes(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, record), those of SQL tasks with their "database". Raises ArtifactError.

    All is read twice: which data base a task is on shows in the answers that any of its agents had.
    """
    known = databases(raw for _, raw in objects(path))
    for where, raw in objects(path):
        yield where, {**raw, "database": known.get(raw.get("task"))} if _is_sql(raw) else raw


def databases(records: Iterable[Any]) -> dict[int, str]:
    """The data base of each SQL task.

    By the name that most error messages to its agents have; else that of the tasks with the same list of tables; else that
    of the only data base which has all the tables that its agents read without an error. Tasks of which nothing is known
    are absent.
    """
    seen: dict[int, Evidence] = {}
    for raw in records:
        try:
            if _is_sql(raw):
                seen.setdefault(raw["task"], Evidence()).add(raw["steps"])
        except (KeyError, TypeError, AttributeError):
            continue  # `convert` says what is wrong, and where
    found = {task: evidence.names.most_common(1)[0][0] for task, evidence in seen.items() if evidence.names}
    votes: dict[frozenset[str], Counter[str]] = {}
    for task, name in found.items():
        for tables in seen[task].lists:
            votes.setdefault(tables, Counter())[name] += 1
    of_tables = {tables: names.most_common(1)[0][0] for tables, names in votes.items()}
    for task in seen.keys() - found.keys():
        lists, read = seen[task].lists, seen[task].read
        named = {of_tables[tables] for tables in lists if tables in of_tables}
        having = {name for tables, name in of_tables.items() if read and tables >= read}
        if len(likely := named or having) == 1:
            found[task] = likely.pop()
    return found


@dataclass
class Evidence:
    """What the episodes of one task show of its data base."""

    names: Counter[str] = field(default_factory=Counter)
    lists: set[frozenset[str]] = field(default_factory=set)
    """Answers to SHOW TABLES."""
    read: set[str] = field(default_factory=set)
    """Tables that were read without an error."""

    def add(self, steps: Iterable[Json]) -> None:
        for step in steps:
            answer = step["observation"] or ""
            self.names.update(NAMED.findall(answer))
            if "SHOW TABLES" in step["action"].upper():
                self.lists.update({frozenset(map(str.lower, LISTED.findall(answer)))} - {frozenset()})
            elif step["valid"] and not answer.startswith("Error"):
                self.read.update(map(str.lower, READ.findall(step["action"])))


def convert(raw: Json, where: str) -> Recorded:
    if raw["task"] is None and raw["query"] is None:
        # The file of a setting that was never run: nothing was tried, so nothing failed.
        return Recorded(f"{raw['env']}/none", None, {"messages": turns("", [])}, agent_of(raw))
    dataset = Path(raw["dataset"]).stem
    steps = played(raw)
    shown = "multiturn" in raw["setting"]
    pairs = []
    for number, step in enumerate(steps, start=1):
        seen = step["observation"] or ""
        if shown and number < len(steps):
            seen = f"{seen}\nReward: {step['reward']}"
        pairs.append((step["action"], seen))
    group = f"{dataset}/{raw['database']}" if raw.get("database") else None
    messages = turns(raw["query"], pairs)
    return Recorded(f"{raw['env']}/{dataset}/{raw['task']}", outcome_of(raw), {"messages": messages}, agent_of(raw), group)


def played(raw: Json) -> list[Json]:
    """The steps that the agent took."""
    steps = list(raw["steps"])
    if steps and steps[-1]["action"] == "blocked" and steps[-1]["observation"] is None:
        steps.pop()  # the provider refused to answer
    most = re.search(r"react_(\d+)_turns", raw["setting"])
    return steps[: int(most[1])] if most else steps  # what comes after is the program's own `submit`


def agent_of(raw: Json) -> str:
    """The model, and what the setting adds to environment, model and few-shot set (which is the data set): how it is asked.

    `ic_bash_react_10_turns_fs_2` of gpt-3.5 is "gpt-3.5 react 10 turns". The setting of one file of Python runs says gpt-4
    where its records say gpt-3.5. It is another run than that of gpt-3.5 (their first programs are the same on 4 of 117
    tasks), but both solve the same share. Which model it was the records cannot tell, so both names stay:
    "gpt-3.5 multiturn gpt-4 7 turns".
    """
    rest = raw["setting"].removeprefix(f"ic_{raw['env']}_")
    rest = re.sub(r"-(?=\d+_turns)", "_", re.sub(r"_fs_\d+$", "", rest))
    return " ".join([raw["model"], *(word for word in rest.split("_") if word != raw["model"])])


def _is_sql(raw: Any) -> bool:
    return isinstance(raw, dict) and raw.get("env") == "sql"


FORMAT = Records(
    "intercode", "InterCode's SQL, Bash and Python episodes (JSON lines)", convert, episodes,
    recognises=has("env", "setting", "dataset", "task", "query", "steps"),
)  # fmt: skip
