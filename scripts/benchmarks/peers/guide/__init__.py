"""The guide's own design, as its text describes it: a router on each node, a registry, an agent.

What a competent person writes from it with FastAPI and httpx, in one sitting: plain handlers, a new
`httpx.AsyncClient` in each of them, one uvicorn process a part, run as uvicorn's page tells. An
agent is known to the router of its node, so that only the first router asks the registry. No
queue, no retry, no streaming: the guide has none. Most of its time goes into the new clients, each
of which loads the certificates: with clients that are kept it answered 13 to 17 times as much. Runs
in an environment of its own, without the mesh.

    client -> router of node1 -> registry
                              -> router of node2 -> agent
"""
