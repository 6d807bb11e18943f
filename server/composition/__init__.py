"""How updates become one revised model: one file a rule, one registry. Pure torch; no files, no network, no clock."""

from excise.server.composition.composer import Composer, Update
from excise.server.composition.registry import known_rules, new_composer, recovery_rounds, rule_options

__all__ = ["Composer", "Update", "known_rules", "new_composer", "recovery_rounds", "rule_options"]
