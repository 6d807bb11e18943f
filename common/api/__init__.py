"""What sites and the coordinator's own service say to each other: one small gRPC service, with certificates on both sides.

`coordinator_pb2.py` and its companions are made from `coordinator.proto` by ``scripts/generate_api.py``.
"""

PROTOCOL = "1"
"""Version of what is said. A call names it; a coordinator that speaks another refuses and says which."""
PROTOCOL_KEY, INCIDENT_KEY = "excise-protocol", "excise-incident"
"""Metadata: of a call its protocol; of an answer the number under which the coordinator's log says more."""
CHUNK = 1 << 20
"""Bytes of a model that go into one message."""
LARGEST = 16 << 20
"""Most bytes of one message: evidence of many sites has some megabytes."""
