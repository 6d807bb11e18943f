"""How unlearning is judged in benchmarks: one idea a file, pure functions of models and tensors; no files, no network."""
