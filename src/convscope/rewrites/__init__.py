"""Rewrites: a design choice applied to a trained network, with proof of what it changed.

`rewrite(net, rule)` edits a private copy, verifies each edit against its exactness class, and keeps a record. One
file a rule family; what they share is in base (rules, edits), work (the copy that is edited) and verify (the proof).
"""
