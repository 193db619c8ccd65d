"""One file per stage role: the trainable module and the wrapper that is exported."""
