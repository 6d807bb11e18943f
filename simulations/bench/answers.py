"""Answers of sites, kept on disk while a run goes on, and given again by nobody but a file.

So the coordinator can be measured alone: in the process that asks again there is no site, no image and no model of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from excise.common.messages import SiteUpdate, UnlearnInstruction
from excise.common.weights import digest, floating

UNLEARN = UnlearnInstruction.KIND
STEP = 1e-5
"""Every entry of a made-up change: small enough to be admitted, whatever the model."""


class Kept:
    """The client app of all sites, whose answers are kept.

    Attributes
    ----------
    answers : in rounds of unlearning
    down, up : bytes of those rounds' questions and answers, records as they are serialised for the wire
    """

    def __init__(self, app: ClientApp, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._app, self._folder, self._asked = app, folder, Counter[str]()
        self.answers = self.down = self.up = 0

    def __call__(self, message: Message, context: Context) -> Message:
        reply = self._app(message, context)
        answer = _bytes(reply.content)
        if message.metadata.message_type == UNLEARN:
            self.answers += 1
            self.down += len(_bytes(message.content))
            self.up += len(answer)
        (self._folder / _name(message, self._asked)).write_bytes(answer)
        return reply


class Given:
    """Answers in a site's place: those that it gave, an update with a change made up for the model that is asked about.

    Parameters
    ----------
    folder : what `Kept` wrote
    model : weights of the model that is unlearned
    """

    def __init__(self, folder: Path, model: Mapping[str, torch.Tensor]) -> None:
        keys = {path.name.rpartition("-")[0] for path in folder.iterdir()}
        # All that there are, so that a run adds none: what is kept here is not the coordinator's.
        self._folder, self._asked = folder, Counter(dict.fromkeys(keys, 0))
        self._round, self._base = "", ""
        changed = {name: torch.full_like(x, STEP) for name, x in floating(model).items()}
        made_up = SiteUpdate(weights_in="", delta=changed, passes=0, seconds=0.0).to_record()
        written = _bytes(RecordDict({"delta": made_up["delta"]}))
        self._delta = folder / f"delta-{len(written)}"
        self._delta.write_bytes(written)

    def __call__(self, message: Message, context: Context) -> Message:
        record = _read(self._folder / _name(message, self._asked))
        if message.metadata.message_type == UNLEARN:
            if message.metadata.group_id != self._round:  # every site of a round starts from the same weights
                self._round = message.metadata.group_id
                self._base = digest(UnlearnInstruction.from_record(message.content).weights)
            told, arrays = record["message"], _read(self._delta)["delta"]  # read anew: whoever kept it would be seen
            assert isinstance(told, ConfigRecord)
            assert isinstance(arrays, ArrayRecord)
            told["weights_in"], record["delta"] = self._base, arrays
        return Message(record, reply_to=message)


def _name(message: Message, asked: Counter[str]) -> str:
    """File of an answer, by node, kind and how often that node was asked that; of unlearning the last round stands for all."""
    key = f"{message.metadata.dst_node_id}-{message.metadata.message_type}"
    if message.metadata.message_type != UNLEARN:
        asked[key] += 1
    return f"{key}-{asked[key]}"


def _bytes(record: RecordDict) -> bytes:
    return recorddict_to_proto(record).SerializeToString()


def _read(path: Path) -> RecordDict:
    return recorddict_from_proto(ProtoRecordDict.FromString(path.read_bytes()))
