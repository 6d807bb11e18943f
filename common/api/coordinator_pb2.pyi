from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Nothing(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Keys(_message.Message):
    __slots__ = ("node", "signing", "request", "signature")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SIGNING_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    node: str
    signing: str
    request: str
    signature: str
    def __init__(self, node: _Optional[str] = ..., signing: _Optional[str] = ..., request: _Optional[str] = ..., signature: _Optional[str] = ...) -> None: ...

class Membership(_message.Message):
    __slots__ = ("certificate", "coordinator")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    coordinator: str
    def __init__(self, certificate: _Optional[str] = ..., coordinator: _Optional[str] = ...) -> None: ...

class Renewal(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: str
    def __init__(self, request: _Optional[str] = ...) -> None: ...

class Document(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("request", "text", "signature")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    request: str
    text: str
    signature: str
    def __init__(self, request: _Optional[str] = ..., text: _Optional[str] = ..., signature: _Optional[str] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("id", "document", "state", "since", "waits_for", "standing")
    ID_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    id: str
    document: str
    state: str
    since: str
    waits_for: _containers.RepeatedScalarFieldContainer[str]
    standing: str
    def __init__(self, id: _Optional[str] = ..., document: _Optional[str] = ..., state: _Optional[str] = ..., since: _Optional[str] = ..., waits_for: _Optional[_Iterable[str]] = ..., standing: _Optional[str] = ...) -> None: ...

class RequestName(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: str
    def __init__(self, request: _Optional[str] = ...) -> None: ...

class Evidence(_message.Message):
    __slots__ = ("document", "signatures")
    class SignaturesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    document: str
    signatures: _containers.ScalarMap[str, str]
    def __init__(self, document: _Optional[str] = ..., signatures: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Signature(_message.Message):
    __slots__ = ("request", "digest", "signature")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    request: str
    digest: str
    signature: str
    def __init__(self, request: _Optional[str] = ..., digest: _Optional[str] = ..., signature: _Optional[str] = ...) -> None: ...

class Models(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("version", "manifest", "signature", "size", "current")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    version: int
    manifest: str
    signature: str
    size: int
    current: bool
    def __init__(self, version: _Optional[int] = ..., manifest: _Optional[str] = ..., signature: _Optional[str] = ..., size: _Optional[int] = ..., current: _Optional[bool] = ...) -> None: ...

class Fetch(_message.Message):
    __slots__ = ("version", "offset")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    version: int
    offset: int
    def __init__(self, version: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class InUse(_message.Message):
    __slots__ = ("version", "release")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    version: int
    release: str
    def __init__(self, version: _Optional[int] = ..., release: _Optional[str] = ...) -> None: ...
