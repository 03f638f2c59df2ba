"""`python -m system …` is `tempflow …`, for a checkout that is not installed."""

from system.commands.main import main

main()
