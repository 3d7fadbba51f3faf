"""The pages for people: what is in the mesh, live."""
