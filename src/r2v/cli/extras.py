"""The extras of pyproject.toml: which modules each brings, and which a command needs."""

from __future__ import annotations

from collections.abc import Sequence

_REPORT = ("sklearn", "scipy", "pyarrow", "jsonschema", "matplotlib", "jinja2", "markupsafe")
_GATEWAY = ("starlette", "uvicorn", "aiohttp", "jsonschema", "prometheus_client")
EXTRAS = {
    "fit": ("sklearn", "scipy", "pyarrow", "jsonschema"),
    "serve": ("sklearn", "scipy", *_GATEWAY),
    "gateway": _GATEWAY,
    "report": _REPORT,
    "train": (*_REPORT, "torch", "transformers", "tokenizers", "safetensors", "peft", "aiohttp"),
    "redis": ("redis",),
    "postgres": ("psycopg",),
    "archive": ("duckdb", "pyarrow"),
    "otel": ("opentelemetry",),
    "ray": ("ray",),
    "alfworld": ("textworld", "alfworld"),
    "datasets": ("datasets",),
    "bench": (*_REPORT, "agentdojo"),
}
"""Extra -> modules that it brings."""
_COMMANDS = {
    **dict.fromkeys(("run", "evaluate", "certify", "ablate", "clone"), "train"),
    **dict.fromkeys(("serve", "check", "serve-model", "launch", "promote", "rollback"), "serve"),
    **dict.fromkeys(("advise", "fit", "export", "import", "train-verifier"), "fit"),
    **dict.fromkeys(("inspect", "explain"), "report"),
    "archive": "archive",
    "bench": "bench",
}


def missing(module: str, arguments: Sequence[str]) -> str | None:
    """The line that says how to install a module which a command lacks; None if no extra brings it.

    Several extras bring pyarrow, say: the one named is the command's own where that brings it.
    """
    top = module.split(".")[0]
    extras = [extra for extra, modules in EXTRAS.items() if top in modules]
    if not extras:
        return None
    own = _COMMANDS.get(next((word for word in arguments if not word.startswith("-")), ""))
    return f"{top} is not installed; pip install 'r2v[{own if own in extras else extras[0]}]'"
