"""Notices: how a machine learns that it will be taken away, one file for each way.

`detection` says where we are, from DMI data and the environment alone; nothing is ever asked over the network to find
that out. A *source* (`aws`, `gcp`, `azure`, `hooks`; signals are in `node.run`) is a value with an `interval_seconds`
and a blocking `look() -> Seen`; `watching` runs each in a thread of its own and hands what it saw to the agent.
`ending` decides when to go.
"""
