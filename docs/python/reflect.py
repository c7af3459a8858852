#!/usr/bin/env python3
"""Talks to any node of a Trivet cluster without generated code: the node itself describes its messages.

    pip install -r requirements.txt
    reflect.py 127.0.0.1:7401 put orders greeting hello
    reflect.py 127.0.0.1:7402 get orders greeting

Any node takes any key: one that does not hold it forwards the call.
"""

import secrets
import sys
import time

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

TIMEOUT_SECONDS = 5


class Kv:
    """The service trivet.v1.Kv, as the node reflects it."""

    def __init__(self, address: str):
        self.channel = grpc.insecure_channel(address)
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))
        self.methods = pool.FindServiceByName("trivet.v1.Kv").methods_by_name

    def call(self, name: str, **fields):
        method = self.methods[name]
        request = message_factory.GetMessageClass(method.input_type)(**fields)
        answer_class = message_factory.GetMessageClass(method.output_type)
        invoke = self.channel.unary_unary(
            f"/trivet.v1.Kv/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer_class.FromString,
        )
        return invoke(request, timeout=TIMEOUT_SECONDS)


def put(kv: Kv, table: str, key: str, value: str) -> None:
    # The id names this write for ever: sending the same request again has no second effect.
    request_id = {"client": secrets.randbits(64), "sequence": 1, "issued_ms": int(time.time() * 1000)}
    answer = kv.call("Put", table=table, key=key.encode(), value=value.encode(), request=request_id)
    print(answer.version)


def get(kv: Kv, table: str, key: str) -> int:
    answer = kv.call("Get", table=table, key=key.encode())
    if not answer.HasField("found"):
        return 3
    sys.stdout.write(answer.found.value.decode() + "\n")
    return 0


def reason(error: grpc.RpcError) -> str:
    """The reason that never changes its name (docs/errors.md), or gRPC's own code when the call did not get that far."""
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return info.reason
    return error.code().name


def main() -> int:
    if len(sys.argv) not in (5, 6) or sys.argv[2] not in ("put", "get"):
        print(__doc__, file=sys.stderr)
        return 2
    address, verb, table, key, *rest = sys.argv[1:]
    try:
        kv = Kv(address)
        if verb == "put":
            put(kv, table, key, rest[0])
            return 0
        return get(kv, table, key)
    except grpc.RpcError as error:
        print(f"{reason(error)}: {error.details()}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
