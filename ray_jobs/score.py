"""Job: score what is not labelled yet.

ray job submit --working-dir . -- python ray_jobs/score.py CONFIG [--set select.alpha=1]
"""

from started import start

if __name__ == "__main__":
    start("score")
