"""From a request to a server and back: the pool of servers, one server's queue, the protocol, HTTP."""
