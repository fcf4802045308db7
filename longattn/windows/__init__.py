"""Documents -> token windows: tokenizer, Algorithm 1, ids, and counts of what recurs."""
