"""First-layer attention scores of token windows. Knows nothing of Ray or of files of windows.

checkpoint: find and read the few tensors needed; tables: queries and keys of every token;
statistics: the definition and its CPU backend; triton_kernel: its NVIDIA backend; scorer: all of it.
"""
