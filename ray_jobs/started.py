"""What each job does: the `longattn` command of its name, with the arguments of the job."""

import sys


def start(command: str) -> None:
    """Run a command of longattn; with a Python that lacks it, say so in a line and end with status 2."""
    # The project's root in place of this folder, whose select.py would stand for Python's own module.
    sys.path[0] = __file__.rsplit("/", 2)[0]
    try:
        from longattn.cli import command as run
    except ModuleNotFoundError as error:
        print(
            f"longattn: the Python of this job, {sys.executable}, has no module {error.name}: name one that "
            "has longattn with its packages, as in `-- /path/to/.venv/bin/python ray_jobs/...`",
            file=sys.stderr,
        )
        sys.exit(2)
    run(command)
