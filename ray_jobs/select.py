"""Job: select from stored scores.

ray job submit --working-dir . -- python ray_jobs/select.py CONFIG [--set select.alpha=1]
"""

import sys

# The project's root in place of this folder, whose select.py would stand for Python's own module.
sys.path[0] = __file__.rsplit("/", 2)[0]

from longattn.cli import command  # noqa: E402

if __name__ == "__main__":
    command("select")
