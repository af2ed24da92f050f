"""`python -m samadapt`: the command line, where the script `samadapt` is not on the PATH."""

from samadapt.cli import main

if __name__ == "__main__":
    main()
