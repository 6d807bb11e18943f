"""The coordinator's side: rounds, weights, admission, composition, and the record of a run."""
