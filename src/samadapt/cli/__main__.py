"""`python -m samadapt.cli`."""

from samadapt.cli import main

if __name__ == "__main__":
    main()
