"""From completions to what the signals read: answers, embeddings, metrics."""
