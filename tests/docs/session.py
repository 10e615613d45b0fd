"""Runs the blocks of Python of a page, one after the other, with the names of those before."""

import os
import sys

names = {"__name__": "__main__"}
sys.path.insert(0, os.getcwd())
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # What blocks print is not an answer.
for line in sys.stdin:
    file = line.rstrip("\n")
    with open(file) as opened:
        exec(compile(opened.read(), file, "exec"), names)
    sys.stdout.flush()
    print("done", file=answers, flush=True)
