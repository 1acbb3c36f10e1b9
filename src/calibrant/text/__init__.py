"""From completions to what the signals read: answers, embeddings, metrics."""

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
"""The embedding model of GCPO (appendix E.3)."""
