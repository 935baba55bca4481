"""`srpo plan`: does a configuration fit a cluster, how long does a step take there, and which layout would be better.

Nothing is run and nothing heavy is imported: sizes come from the model's config.json and from what this repository's
code allocates (memory.py), times from a roofline (speed.py) and from a simulation of the rollout (simulate.py), and
every number that is not derived is an assumption with its source (hardware.py). docs/planning.md has the formulas.
"""
