"""gRPC: the table between errors and statuses, the gate in front of every method, the servicers, the channels."""
