"""`python -m parablock_ray`: the command `parablock`, of a certain Python."""

from parablock_ray.cli import main

main()
