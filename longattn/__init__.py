"""longattn: long documents whose far ends depend on each other, found by token-level attention."""
