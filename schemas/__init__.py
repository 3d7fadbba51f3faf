"""Wire models of the mesh: pydantic only, no I/O. The specification is `schemas/README.md`."""
