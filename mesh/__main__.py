"""`python -m mesh` is `mesh`."""

from mesh.cli import main

main()
