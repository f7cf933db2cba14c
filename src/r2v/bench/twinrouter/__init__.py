"""TwinRouterBench (arXiv 2605.18859): routers of r2v in its protocol, its static bank and its arithmetic.

`run.bench` scores routers on the static bank; `adapter.TwinRouter` is what its own harness takes on the dynamic track;
`bill.score_run` prices a run of that harness. See docs/twinrouterbench.md.
"""
