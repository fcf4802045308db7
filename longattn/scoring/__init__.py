"""Scoring: first-layer attention statistics of token windows. Knows nothing of Ray or files of text."""
