"""From completions to what the signals read: answers, embeddings, metrics.

Sources: (a) read in the authors' code, (a*) in code of others, (b) in the paper, (c) an interpretation.
"""
