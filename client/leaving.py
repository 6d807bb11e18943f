"""The one way out of a site: what its policy does to a reply, and then the gate. Rounds and dry runs both go through here."""

from __future__ import annotations

from dataclasses import replace

from flwr.app import RecordDict

from excise.client.accountant import Accountant
from excise.client.config import SiteConfig
from excise.client.egress import Withheld, permitted, release
from excise.client.keyed import keyed
from excise.client.noise import KeyedNormal
from excise.client.privacy import private
from excise.common import messages as m
from excise.common.weights import Weights, digest


def outgoing(
    reply: m.Message, question: m.Message, config: SiteConfig, public: frozenset[str], accountant: Accountant | None
) -> RecordDict:
    """Pack a reply to `question` as the policy lets it leave, and count it when it is an update.

    Parameters
    ----------
    public : the site's public names (`release`)
    accountant : counts the update; None where nothing leaves, as in a dry run

    Raises
    ------
    Withheld : something in it may not leave
    Forbidden : one update more would exceed the site's bound of ε
    DataError, StorageError : it cannot be counted
    """
    privacy = config.policy.privacy
    if isinstance(reply, m.SiteUpdate):
        reply = replace(reply, delta=_private(reply, question, config))
    record = release(permitted(reply, config.policy), question, public)
    if isinstance(reply, m.SiteUpdate) and accountant:
        accountant.count(privacy)  # last: what the gate keeps back has not left
    return record


def _private(update: m.SiteUpdate, question: m.Message, config: SiteConfig) -> Weights:
    """What leaves of an update's weights.

    The key of the noise follows from the site's secret and from all that the update depends on. So a run that is repeated, or
    a question that is asked twice, gets the same answer, and learns nothing by averaging; another question, update or setting
    gets noise that has nothing to do with it.
    """
    if not isinstance(question, m.FitInstruction | m.UnlearnInstruction):
        raise Withheld("an update leaves only in answer to training or unlearning")
    privacy, normal = config.policy.privacy, None
    if privacy.noise_multiplier:
        asked = f"{replace(question, weights={})!r}|{digest(question.weights)}"
        key = keyed(config.split.key, f"noise|{config.name}|{privacy!r}|{asked}|{digest(update.delta)}")
        normal = KeyedNormal(bytes.fromhex(key))
    return private(update.delta, question.weights, privacy, normal)
