"""The coordinator's dashboard: pages of one run store, live, for people who watch and people who decide."""
