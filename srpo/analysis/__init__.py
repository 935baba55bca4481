"""How often responses show a behaviour, over training: rechecking, hesitating, code in maths answers, loops, ...

`patterns.yaml` says what is looked for, and users may give their own file; patterns.py reads it, detect.py finds it in
a batch of stored responses, frequency.py counts over a run, examples.py shows it, report.py prints. docs/analysis.md
has the definitions and how well they do on labelled responses.

The paper counts recheck, hesitation and exploration, and publishes neither lists nor definitions: these are ours.
"""
