"""Job: score, then select.

ray job submit --working-dir . -- python ray_jobs/run.py CONFIG [--set select.alpha=1]
"""

from started import start

if __name__ == "__main__":
    start("run")
