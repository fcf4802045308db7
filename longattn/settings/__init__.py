"""Settings: how numbers and paths are written, how a bad one is refused, how all are explained."""
