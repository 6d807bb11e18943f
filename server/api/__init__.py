"""The coordinator's own service, which sites call: gRPC over mutual TLS (`common/api/coordinator.proto`)."""
