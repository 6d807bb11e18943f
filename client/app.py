"""The Flower client app of a site: unpack the message, call its round of `client/rounds`, pack the reply.

Flower would send an exception's text to the coordinator, and a handler that returns None wedges its node. So every handler
catches everything, writes the details into the site's own log under an incident number, and answers with a code alone.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from excise.client import logs, rounds
from excise.client.accountant import Accountant
from excise.client.config import read_site_config
from excise.client.egress import Withheld, release
from excise.client.extent import OutOfTime, limited_to
from excise.client.leaving import outgoing
from excise.client.permission import Forbidden, check, check_approval, count_round
from excise.client.refusals import hear
from excise.client.requests import Requests
from excise.client.rounds.model import SiteFailure
from excise.client.site import Site, open_site
from excise.common import messages
from excise.common.errors import ConfigError, DataError, MessageError, RequestError, SiteError, StorageError

log = logging.getLogger("excise.client")
M = TypeVar("M", bound=messages.Question)


def make_app(locate: Callable[[Context], Path]) -> ClientApp:
    """Build the client app of sites whose `site.toml` is found by `locate`."""
    app = ClientApp()
    app.query("status")(_handler(locate, messages.StatusQuery, rounds.status.answer))
    app.query("reference")(_handler(locate, messages.ReferenceQuery, rounds.reference.answer))
    app.train("fit")(_handler(locate, messages.FitInstruction, rounds.fit.answer))
    app.train("unlearn")(_handler(locate, messages.UnlearnInstruction, rounds.unlearn.answer))
    app.evaluate("audit")(_handler(locate, messages.AuditQuery, rounds.audit.answer))
    app.evaluate("probe")(_handler(locate, messages.ProbeQuery, rounds.probe.answer))
    app.evaluate("moments")(_handler(locate, messages.MomentsQuery, rounds.moments.answer))
    app.evaluate("embedding")(_handler(locate, messages.EmbeddingQuery, rounds.embedding.answer))
    return app


def _handler(
    locate: Callable[[Context], Path], expected: type[M], work: Callable[[Site, M], messages.Message]
) -> Callable[[Message, Context], Message]:
    def handle(message: Message, context: Context) -> Message:
        question: M | None = None
        began = time.perf_counter()
        about = {"round": expected.KIND, "run": message.metadata.run_id, "message": message.metadata.message_id}
        try:
            question = expected.from_record(message.content)
            site_toml = locate(context)
            config = read_site_config(site_toml)
            hear(question, config)
            check(question, config.policy, config.limits, datetime.now().astimezone())
            requests, accountant = Requests(site_toml.parent), Accountant(site_toml.parent)
            if config.policy.approval:
                check_approval(question, requests)
            if isinstance(question, messages.FitInstruction | messages.UnlearnInstruction):
                accountant.check(config.policy.privacy)
            if isinstance(question, messages.UnlearnInstruction):
                count_round(question.request, requests, config.limits)
            site = open_site(site_toml)  # may decode for hours: only for what is allowed
            with limited_to(config.limits.seconds):
                answer = work(site, question)
                if isinstance(question, messages.StatusQuery) and question.request and isinstance(answer, messages.SiteStatus):
                    requests.commit(question.request, answer.commitment)
                reply = outgoing(answer, question, config, site.public_names, accountant)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must be answered, and its text must stay here
            reply = release(_failure(error, about), question, frozenset())
        else:
            log.info("answered", extra={"details": {**about, "seconds": round(time.perf_counter() - began, 3)}})
        return Message(reply, reply_to=message)

    return handle


def _failure(error: Exception, about: Mapping[str, object]) -> messages.Failure:
    incident, code = secrets.token_hex(8), _code(error)
    details = {**about, "incident": incident, "code": code, "kind": type(error).__name__}
    log.error("incident %s: %s", incident, type(error).__name__, extra={"details": details})
    log.debug("incident %s", incident, exc_info=error)  # the text may name a file or a patient: not at the default level
    return messages.Failure(code=code, incident=incident)


def _code(error: Exception) -> SiteError:
    if isinstance(error, SiteFailure | Forbidden | Withheld | OutOfTime):
        return error.code
    for kind, code in (
        (MessageError, SiteError.BAD_MESSAGE),
        (RequestError, SiteError.BAD_REQUEST),
        (DataError, SiteError.BAD_DATA),
        (ConfigError, SiteError.BAD_CONFIG),
        (StorageError, SiteError.STORAGE),
        ((MemoryError, torch.OutOfMemoryError), SiteError.OUT_OF_MEMORY),
    ):
        if isinstance(error, kind):
            return code
    return SiteError.INTERNAL


def _from_node_config(context: Context) -> Path:
    """A deployed site: ``--node-config 'site="/path/to/site.toml"'``."""
    return Path(str(context.node_config["site"]))


if logs.FILE in os.environ:  # as `client/deploy/supervisor.py` starts it
    logs.log_to(Path(os.environ[logs.FILE]), os.environ.get(logs.LEVEL, "INFO"))
app = make_app(_from_node_config)
