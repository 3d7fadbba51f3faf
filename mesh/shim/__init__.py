"""The HTTP door: OpenAI clients on one side, calls across the mesh on the other."""
