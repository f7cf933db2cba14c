"""Rules of other systems as routers, one file each, written from their documentation: `r2v bench` plays them beside ours.

`r2v.routers.RIVALS` lists them, and docs/bench_rules.md says where each is from and what of it has no counterpart here.
"""
