"""How many examples a property test draws: of its own choice, or as many as LONGATTN_EXAMPLES says."""

import os


def examples(usual: int) -> int:
    """The larger of what a test draws in the suite and what the environment asks for."""
    return max(usual, int(os.environ.get("LONGATTN_EXAMPLES", "0")))
