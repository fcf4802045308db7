"""Job: select from stored scores.

ray job submit --working-dir . -- python ray_jobs/select.py CONFIG [--set select.alpha=1]
"""

from started import start

if __name__ == "__main__":
    start("select")
