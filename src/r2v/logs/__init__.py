"""Recorded trajectories of other programs, and the gateway's ledger, as episodes. One module a format.

A package adds its own by an entry point of the group `r2v.log_formats`, or is named as `package.module:Thing`: an
object (or a class without arguments) like `r2v.logs.records.LogFormat`. `r2v.logs.importing.import_logs` reads with it.
"""

BUILT_IN = {
    "ledger": "r2v.logs.ledger:FORMAT",
    "episodes": "r2v.logs.ledger:EPISODES",
    "openai-jsonl": "r2v.logs.openai_jsonl:FORMAT",
    "anthropic-jsonl": "r2v.logs.anthropic_jsonl:FORMAT",
    "mini-swe-agent": "r2v.logs.mini_swe_agent:FORMAT",
    "tau-bench": "r2v.logs.tau_bench:FORMAT",
    "atif": "r2v.logs.atif:FORMAT",
    "terminal-log": "r2v.logs.terminal_log:FORMAT",
    "terminalbench": "r2v.logs.terminalbench:FORMAT",
    "knowagent-alfworld": "r2v.logs.knowagent:FORMAT",
    "mint": "r2v.logs.mint:FORMAT",
    "agentdojo": "r2v.logs.agentdojo:FORMAT",
    "intercode": "r2v.logs.intercode:FORMAT",
    "workbench": "r2v.logs.workbench:FORMAT",
    "who-and-when": "r2v.logs.who_and_when:FORMAT",
}
AUTO = "auto"
"""The name that stands for the format that `r2v.logs.detection.detect` finds."""
