"""A Flower grid inside one process: the real apps, without network and without Ray. For tests, and when memory is short."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity


class LocalGrid(Grid):
    """Calls the client app directly, one message at a time, in the order in which they are pushed.

    Parameters
    ----------
    client_app : the app of every node, or what answers in its place
    nodes : number of nodes; node i gets ``partition-id = i``, as in Flower's own simulation
    dead : numbers of nodes that never answer
    """

    def __init__(self, client_app: Callable[[Message, Context], Message], nodes: int, dead: Iterable[int] = ()) -> None:
        # Messages made outside a Flower process need an identity; the numbers mean nothing here.
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        self._app = client_app
        self._run = Run.create_empty(1)
        self._numbers = itertools.count(1)
        self._dead = {100 + i for i in dead}
        self._replies: dict[str, Message] = {}
        self._contexts = {
            100 + i: Context(
                run_id=1,
                node_id=100 + i,
                node_config={"partition-id": i, "num-partitions": nodes},
                state=RecordDict(),
                run_config={},
            )
            for i in range(nodes)
        }

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node) for node in self._contexts]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._deliver(message) for message in messages]

    def _deliver(self, message: Message) -> str:
        message_id = f"message-{next(self._numbers)}"
        message.metadata.__dict__["_message_id"] = message_id
        message.metadata.__dict__["_run_id"] = self._run.run_id
        node = message.metadata.dst_node_id
        if node in self._dead:
            return message_id
        try:
            reply = self._app(message, self._contexts[node])
        except Exception as error:  # noqa: BLE001 - what a Flower node does with an exception of its app
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, type(error).__name__), reply_to=message)
        self._replies[message_id] = reply
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))
