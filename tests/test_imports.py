"""Imports go down only; siblings on a level are blind to each other; torch stays where it belongs."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import r2v

ROOT = Path(r2v.__file__).parent
LEVELS = (
    ("core", "maths"),
    ("runtime", "messages"),
    ("perturbations", "clients", "verifiers"),
    ("learning", "evaluation", "domains", "verdicts"),
    ("routers",),
    ("report",),
    ("pipeline", "gateway"),
    ("studies", "logs"),
    ("bench",),
    ("cli",),
)
LEVEL = {name: i for i, names in enumerate(LEVELS) for name in names}
SAME_LEVEL = {("core", "maths"), ("verifiers", "clients")}
TORCH = ("torch", "transformers", "tokenizers", "peft")
MAY_USE_TORCH = ("learning/", "clients/local/")
INSIDE_FUNCTIONS_ONLY = ("pipeline/", "studies/", "routers/", "cli/doctor.py")
"""These may reach torch code, but only inside functions: importing them stays cheap."""


@cache
def imports_of(path: Path) -> list[tuple[str, bool]]:
    """(module, at top level) of every import in a file, also inside functions."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", id(node) in top))
            if node.module == "r2v":
                found += [(f"r2v.{alias.name}", id(node) in top) for alias in node.names if alias.name in LEVEL]
    return found


def files() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def unit(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_module_has_a_level():
    assert {unit(path) for path in files()} == set(LEVEL)


def test_imports_go_down():
    wrong = []
    for path in files():
        here = unit(path)
        for module, _ in imports_of(path):
            parts = module.split(".")
            if parts[0] != "r2v" or len(parts) < 2 or parts[1] == here:
                continue
            there = parts[1]
            same = LEVEL[there] == LEVEL[here] and (here, there) not in SAME_LEVEL
            if LEVEL[there] > LEVEL[here] or same:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


def test_torch_stays_where_it_belongs():
    wrong = []
    for path in files():
        name = str(path.relative_to(ROOT))
        for module, top in imports_of(path):
            allowed = name.startswith(MAY_USE_TORCH) or (not top and name.startswith(INSIDE_FUNCTIONS_ONLY))
            if module.split(".")[0] in TORCH and not allowed:
                wrong.append(f"{name} imports {module}")
    assert not wrong


def test_deciding_and_the_command_line_start_without_torch():
    code = (
        "import sys, r2v, r2v.core.features, r2v.core.fixed, r2v.routers.r2v, r2v.domains.household.verifier, "
        "r2v.cli, "
        "r2v.pipeline.settings, r2v.pipeline.runner, r2v.report.page; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_deciding_needs_numpy_and_msgspec_alone():
    allowed = {"numpy", "msgspec", "typing_extensions", "r2v"}
    code = (
        "import sys; before = set(sys.modules); import r2v, r2v.core.fixed, r2v.routers.r2v, r2v.routers.helper; "
        "print('\\n'.join(sorted({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names))))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert {name for name in out.split() if not name.startswith("_")} <= allowed


def test_a_run_of_local_models_needs_no_http_client():
    """`r2v stages` and a run's settings belong to the plain installation, which has no aiohttp (`r2v[serve]`)."""
    code = "import sys, r2v.cli, r2v.pipeline.settings, r2v.pipeline.runner; assert 'aiohttp' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_serving_loads_little():
    """What `r2v serve` imports: no training, no fitting, no figures, no environments, and few modules of r2v."""
    code = "import r2v.gateway.serve, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    others = {"torch", "pyarrow", "matplotlib", "pandas", "sklearn", "scipy", "httpx", "rich", "pydantic"}
    assert not others & {name.split(".")[0] for name in loaded}
    ours = [name for name in loaded if name.split(".")[0] == "r2v"]
    assert not [
        name for name in ours if name.startswith(("r2v.domains", "r2v.runtime.sandbox", "r2v.pipeline", "r2v.learning"))
    ]
    assert len(ours) < 76, ours


def test_the_command_line_imports_what_a_command_runs_when_it_runs():
    code = "import r2v.cli, sys; print(*(name for name in sys.modules if name.startswith('r2v.')))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    parts = {"cli", "core", "maths", "runtime", "routers", "logs"}  # of the last two, the lists of what there is
    assert {name.split(".")[1] for name in loaded} <= parts


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def edges() -> dict[str, set[str]]:
    """module -> modules of r2v that it imports, inside functions too; what only the type checker reads does not count."""
    modules = {module_of(path): path for path in files()}
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        tree = ast.parse(path.read_text())
        unread = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        targets: set[str] = set()
        for node in ast.walk(tree):
            if id(node) in unread:
                continue
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= {t for t in inner if t in modules} or {node.module}
        found[name] = {t for t in targets if t in modules and t != name}
    return found


def test_no_module_imports_itself_through_others():
    graph, state, cycles = edges(), {}, []

    def visit(name: str, path: list[str]) -> None:
        state[name] = "open"
        for target in sorted(graph[name]):
            if state.get(target) == "open":
                cycles.append(" -> ".join([*path[path.index(target) :], target]))
            elif target not in state:
                visit(target, [*path, target])
        state[name] = "done"

    for name in sorted(graph):
        if name not in state:
            visit(name, [name])
    assert not cycles
