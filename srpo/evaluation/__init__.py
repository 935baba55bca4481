"""`srpo eval`: avg@k, pass@k and majority@k of a model or a run, with intervals. docs/evaluation.md says how.

benchmarks.py and data.py bring the problems in, subject.py the model; sampling.py samples and grades them in chunks,
each kept on disk; votes.py finds which answers are the same; metrics.py and report.py make figures of it all;
command.py puts them in order.
"""
