"""Registers `sqlite` and `memory` stores. A file is durable and serves several processes; memory is private to one."""
