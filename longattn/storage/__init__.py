"""Where bytes live: files on any store, the tables of a run, and its output folder."""
