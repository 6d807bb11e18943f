"""How updates become one revised model: one file a rule, one registry. Pure torch; no files, no network, no clock."""

from excise.server.composition.registry import Composer, known_rules, new_composer

__all__ = ["Composer", "known_rules", "new_composer"]
