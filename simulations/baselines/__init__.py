"""The field's unlearning methods, one module each, behind the interface that ours has in the benchmark."""
