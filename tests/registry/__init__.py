"""igrun against real registries and real clients: servers, tools, and a table of what was exchanged."""
