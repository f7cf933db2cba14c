"""`r2v bench`: routers beside one another on recorded agents and in real engines, with what needs no router beside them.

`BUILT_IN` lists the suites. Adding one is one file: an object with what `r2v.bench.suite.Suite` names.
"""

BUILT_IN = {
    "intercode-verdict": "r2v.bench.suites.recorded:INTERCODE_VERDICT",
    "intercode": "r2v.bench.suites.recorded:INTERCODE",
    "workbench": "r2v.bench.suites.recorded:WORKBENCH",
    "mint": "r2v.bench.suites.recorded:MINT",
    "tau-bench": "r2v.bench.suites.recorded:TAU_BENCH",
    "agentdojo": "r2v.bench.suites.agentdojo:TAKEOVER",
    "agentdojo-step": "r2v.bench.suites.agentdojo:ONE_STEP",
    "knowagent": "r2v.bench.suites.knowagent:KNOWAGENT",
    "queries": "r2v.bench.suites.queries:QUERIES",
}
"""In the order of pages and tables."""
