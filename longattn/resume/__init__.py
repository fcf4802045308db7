"""What is done, and whose it is: fingerprint, markers, locks, and what remains."""
