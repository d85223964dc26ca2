"""`python -m conclave.platform`: see `launch.main`."""

from conclave.platform.launch import main

main()
