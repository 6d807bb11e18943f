"""The benchmark's result pages, made of what is kept: who did how well, who wins, and where ours does not."""
