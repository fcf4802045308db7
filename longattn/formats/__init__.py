"""The kept windows -> files that trainers read: one module a format, one way through all of them."""
