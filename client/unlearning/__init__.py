"""The unlearning mathematics: boundary search, targets, objective, local steps. Pure torch; no files, no network, no clock."""
