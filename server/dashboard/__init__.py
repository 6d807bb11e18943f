"""The coordinator's dashboard: pages over the run store."""
