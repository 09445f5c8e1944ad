"""`python -m deltahalt`: the command, by the interpreter that runs it."""

from deltahalt.cli import main

main()
