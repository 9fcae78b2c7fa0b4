"""Studies: networks trained in controlled comparisons, over many seeds, on any engine.

Read in this order: `design` (what is compared), `plan` (the runs that follow from it), `run` (one training), `record`
(what is kept on disk), `study` (all of it), `results` (what came out, with `statistics` and `choice`).
"""
