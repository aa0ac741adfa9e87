"""The peer image's healthcheck: ``healthcheck.py HOST:PORT`` ends with 0 when the peer there serves.

It imports gRPC alone: that takes a third of the time that ``blazen-peer health`` needs to start, and it runs again and again.
"""

import sys

import grpc

SERVING = b"\x08\x01"  # grpc.health.v1.HealthCheckResponse with status SERVING
TIMEOUT_SECS = 5.0

if __name__ == "__main__":
    with grpc.insecure_channel(sys.argv[1], options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=TIMEOUT_SECS)
        except grpc.RpcError as error:
            sys.exit(f"it does not answer: {error.code().name}")
    sys.exit(None if answer == SERVING else "it does not serve")
