"""nano: a small SAMWISE trained on a synthetic dataset (dataset, network sizes, training, evaluation)."""
