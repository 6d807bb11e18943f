"""What a site does in each kind of round: one module each, whose `answer` turns the message that came into the reply."""

from excise.client.rounds import audit, embedding, fit, moments, probe, reference, status, unlearn

__all__ = ["audit", "embedding", "fit", "moments", "probe", "reference", "status", "unlearn"]
