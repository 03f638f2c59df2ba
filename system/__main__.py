"""`python -m system …` is `tempflow …`, for a checkout that is not installed."""

from tempflow_entry import main

main()
