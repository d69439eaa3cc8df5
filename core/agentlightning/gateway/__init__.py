"""Serves an engine to agents over HTTP and records every call.

A call is a chain of frozen values. Each step makes one of them from the values before it:

    file              step                                                      value
    auth              finds the attempt of a request                            Incoming
    api/              reads the body in its wire format                         Asked
    conversation      hashes the messages, finds the reply that they continue   History, Match
    prompt            bridges that reply, or renders the messages afresh        Prompt
    sampling          chooses temperature, limits and seed                      Sampling
    generation        samples every choice with the engine                      Generation, with a Reply for each choice
    record            writes the call and its completions                       Draft, then Call and Completions
    api/              writes the answer in its wire format                      bytes

`sampled_call` runs the steps between `auth` and the record. `call` runs `auth`, sends the bytes, and writes the record before the last of
them leaves. `end_of_attempt` cancels the calls that still run when an attempt ends. `server` has the routes and the thread; `listener`
guards their address, and `unknown_path` answers there for the paths that nobody serves. An engine that answers whole requests itself
(`call.Forwarder`) takes the place of `sampled_call`.
"""

from agentlightning.gateway.server import Gateway, gateway_app

__all__ = ["Gateway", "gateway_app"]
