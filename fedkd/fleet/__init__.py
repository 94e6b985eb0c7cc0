"""A resident node of Flower's Fleet API: protobuf over HTTP, without Flower, torch or a process for each message."""
