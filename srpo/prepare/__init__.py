"""`srpo prepare`: raw maths and code data to a training set. docs/data.md describes the schema and the rules.

files.py and readers.py bring rows in; clean.py, math_rules.py and code_rules.py look at one row at a time;
duplicates.py and contamination.py compare rows; verify.py and difficulty.py run graders and a model; pipeline.py puts
them in order.
"""
