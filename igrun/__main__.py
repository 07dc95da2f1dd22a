"""`python -m igrun` is `ig`."""

from igrun.cli import main

if __name__ == "__main__":
    main()
