"""The ways by which an artifact's bytes come here, chosen for each fetch and replaced in order when one fails.

Every way is a pull by the receiver: it knows what it lacks, has reserved the room, and writes into its own staging,
chunk by verified chunk. So a transfer that breaks off is resumed by whatever way comes next, and it does not matter
what an external program wrote: until it is hashed again it counts for nothing (`scratch`).

    choice      which ways there are for this artifact now, in which order, and why: a pure function
    table       the transports: a new one is a file and a line there
    carrier     tries the ways in order, and says so in the log and to `spore where NAME --transfers`
    p2p_http    our own bulk protocol, from any node whose port can be reached
    aria2       `aria2c`, for what is large and lies on several reachable nodes
    rsync       `rsync` over SSH, from a node whose port cannot be reached while its SSH can
    relay       by way of a node that both sides reach: it stores and forwards, and counts what it carries
"""
