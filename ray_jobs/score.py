"""Job: score what is not labelled yet.

ray job submit --working-dir . -- python ray_jobs/score.py CONFIG [--set select.alpha=1]
"""

import sys

# The project's root in place of this folder, whose select.py would stand for Python's own module.
sys.path[0] = __file__.rsplit("/", 2)[0]

try:
    from longattn.cli import command
except ModuleNotFoundError as error:
    print(
        f"longattn: the Python of this job, {sys.executable}, has no module {error.name}: name one that "
        "has longattn with its packages, as in `-- /path/to/.venv/bin/python ray_jobs/...`",
        file=sys.stderr,
    )
    sys.exit(2)

if __name__ == "__main__":
    command("score")
