"""The benchmarks: each measures in one run, and writes a page and a picture."""
