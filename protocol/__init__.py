"""The core of spore: decides, and does nothing.

Pure: no I/O, no clock, no global randomness, no asyncio; time and chance are arguments. `node` performs what is decided
here on sockets and disks, `simulations` on fakes, so that both run the same code.

Follow one artifact through it. A file is closed in a watched folder; the driver makes its bytes safe, hashes them
(`chunks`) and hands a `Put` (`events`) to `Replica.handle` (`replica`). `accepting` stamps a record (`clock`, `values`)
and emits `Log` and `Commit` (`effects`). When `Durable` comes back (`context`, the journal), the record is told to
both ring neighbours (`spreading`, `rings`) and a debt is opened (`debts`): K receipts are owed. `placement` ranks the
stores that may hold it, `sending` offers it to the first K. On the other node `receiving` reserves room and takes the
bytes, large ones piece by piece from all who have some (`swarming`, `swarm`); `publishing` brings them under their name
(`names`), commits the holding, and only then a receipt is sent. Back home the receipt settles the debt, releases the
WAL entry (`settling`), and `retention` looks whether an older version may go.

Beside that path: who is alive (`membership`, and `swim` with its parts), and finding what two nodes do not both have
(`comparing`, over `sketch`).

A new policy goes into `placement`, a new kind into the hosts file (`fleet`), a new message into `messages` and `wire`.
"""
