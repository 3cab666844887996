"""`python -m nextrl`: the command line where the `nextrl` script is not on the path."""

from nextrl.cli import main

if __name__ == "__main__":
    main()
